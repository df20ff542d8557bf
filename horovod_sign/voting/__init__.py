"""The protocol: how a vote travels. Written once, over three collectives of any library (see `collectives`)."""
