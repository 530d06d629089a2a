"""Interception rules: what is intercepted, in three languages, and its coming and going.

    model       what to intercept                    RuleSet
    vocabulary  in which words                       matches, statements
    passing     what passes untouched                the rules that chains begin with
    chains      the rules that mean it               chains_of()
    nft         … as nft text                        ┐
    iptables    … as iptables-restore text           ├ one renderer each
    expressions … as nf_tables expressions           ┘
    table       our table in the kernel              made, drained, deleted
    readback    … and what it looks like there       read()
    lifecycle   the rules as a whole                 apply(), remove()
    probe       whether they are effective           check()

A program needs ``RuleSet`` and ``Mode`` of model, ``apply`` and ``remove`` of
lifecycle, and ``check`` of probe.
"""
