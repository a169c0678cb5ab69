"""`kensho doctor`: what is wrong, in words, each with a fix. Tries the source unless --no-network is given."""

from kensho.cli import exits
from kensho.cli.arguments import Arguments
from kensho.cli.context import Context, Result


def add_arguments(arguments: Arguments) -> None:
    del arguments  # nothing to choose


def run(context: Context) -> Result:
    from kensho.app.doctor import examine

    output = context.output
    with context.open_app(has_log=False) as app:
        checks = examine(app)
    for check in checks:
        output.data(f"{'ok  ' if check.is_ok else 'FIX '} {check.name}: {check.found}")
        if not check.is_ok:
            output.data(f"     -> {check.advice}")
    listed = [{"name": c.name, "ok": c.is_ok, "found": c.found, "advice": c.advice} for c in checks]
    return Result(exits.OK if all(check.is_ok for check in checks) else exits.FAILURE, {"checks": listed})
