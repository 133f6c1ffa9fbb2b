"""What the service knows. Imports the standard library, msgspec and the ports, nothing else.

The modules here are its facts, ``rules`` decides on them; both are below the ports. The other packages are the use
cases, above the ports: ``writing``, ``reading``, ``publishing``, ``consuming``, ``catalog``, ``files``,
``reconciling``, ``upkeep``, all of which go on by what is in ``running``.
"""
