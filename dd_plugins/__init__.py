"""dd-plugins: interchangeable parts for dataset distillation.

Importing this package imports nothing else; take what you need from ``dd_plugins.api``.
"""

__version__ = "0.1.0"
