"""Conformance checks for plugins: one list for each kind, for pytest, for scripts and for ``dd-bench check``.

Example:
    In a plugin's own test file::

        from dd_plugins.testing import parametrize_with_checks

        @parametrize_with_checks(["lowrank"])
        def test_conformance(check):
            check()
"""

from dd_plugins.testing.checks import Check, CheckResult, check_plugin, checks_for, parametrize_with_checks

__all__ = ["Check", "CheckResult", "check_plugin", "checks_for", "parametrize_with_checks"]
