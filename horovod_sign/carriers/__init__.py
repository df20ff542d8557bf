"""Who carries the requests of `voting.collectives`: one file for each library, imported by who has it."""
