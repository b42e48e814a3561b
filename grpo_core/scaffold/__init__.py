"""A new plugin package from templates: ``grpo plugins new``.

The templates are data (``templates/``), rendered with ``string.Template``: ``$name`` and
``${name}`` are filled in, ``$$`` is a dollar sign.
"""
