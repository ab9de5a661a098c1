"""Differential privacy for workers: how much noise a promise needs, and the noise itself.

The unit is one worker, with all updates that it sends in a run. Two federations are neighbours when they
differ in one worker, whose updates all count as zero in the other one. Who sends an update, and when, is the
same in both, and is not protected. No promise here counts on chance deciding who takes part: the order in
which updates arrive is not random.
"""
