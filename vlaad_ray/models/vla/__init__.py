"""Vision-language-action networks whose decoder layers can be gated and skipped (ActDistill, arXiv 2511.18082).

layered says what such a network is, decoder runs it (gated in training, really skipping at run time), router decides
which layers an observation needs, routes are what it decides: names, parameters, FLOPs.
"""
