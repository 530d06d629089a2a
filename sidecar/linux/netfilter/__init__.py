"""Interception rules: what is intercepted, in three languages, and its coming and going.

    model       what to intercept                    RuleSet
    chains      the rules that mean it               matches, statements, chains
    nft         … as nft text                        ┐
    iptables    … as iptables-restore text           ├ one renderer each
    expressions … as nf_tables expressions           ┘
    table       our table in the kernel              made, read, drained, deleted
    lifecycle   the rules as a whole                 apply(), remove()
    probe       whether they are effective           check()

A program needs ``RuleSet`` and ``Mode`` of model, ``apply`` and ``remove`` of
lifecycle, and ``check`` of probe.
"""
