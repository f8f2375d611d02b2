"""
The same for C: C{libudptunnel}, a shared library with Python and L{udptunnel.api} inside.

C{python -m udptunnel.capi build} makes it. C{udptunnel.h} is its reference, and
docs/howto/embed-c.md says how to begin.
"""
