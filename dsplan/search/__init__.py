"""The fastest configuration that fits, the largest model that fits, and sweeps over machines.

:mod:`dsplan.search.search`, :mod:`dsplan.search.fit` and :mod:`dsplan.search.sweep` are its doors; docs/search.md
explains.
"""
