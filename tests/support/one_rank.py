"""Buckets on one process, without Horovod."""

from horovod_sign import rules


class OneRank:
    """An optimizer that buckets can ask, as they do at each step."""

    def __init__(self, groups, rule=None):
        self.param_groups, self._rule, self.states = groups, rule or rules.signsgd(), {}

    def vote_rule(self, group):
        return group.get("rule", self._rule)

    def vote_state(self, p):
        return self.states.setdefault(p, {})
