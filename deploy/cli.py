"""Runs the `perseid` command, whose subcommands are loaded when used and fail with one clear line.

Assumes that a command raises ValueError or OSError for what the user can put right. Only this module turns errors
into exit statuses (0 done, 1 refused or failed, 2 wrong usage, 130 interrupted).
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

import click

from deploy.commands.options import DescribedGroup

# Command -> module. Loaded on use: the API process must not pay for torch, nor the worker for FastAPI.
COMMANDS = {
    "up": "deploy.commands.roles",
    "worker": "deploy.commands.roles",
    "embed": "deploy.commands.roles",
    "api": "deploy.commands.roles",
    "indexer": "deploy.commands.roles",
    "attribution": "deploy.commands.roles",
    "console": "deploy.commands.roles",
    "traffic": "deploy.commands.roles",
    "produce": "deploy.commands.data",
    "convert": "deploy.commands.convert",
    "export": "deploy.commands.data",
    "train": "deploy.commands.model",
    "train-ranker": "deploy.commands.ranker",
    "retrain": "deploy.commands.retrain",
    "models": "deploy.commands.models",
    "evaluate": "deploy.commands.measure",
    "staleness": "deploy.commands.measure",
    "compare": "deploy.commands.measure",
    "replay": "deploy.commands.replay",
    "skew": "deploy.commands.skew",
    "doctor": "deploy.commands.stack",
    "stack": "deploy.commands.stack",
}


class LazyGroup(DescribedGroup):
    """A group whose commands live in modules of their own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(COMMANDS[cmd_name]), cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="perseid", prog_name="perseid")
def cli() -> None:
    """Streaming recommendations: events go into Kafka, the next API call answers from them.

    Settings come from PERSEID_* variables; docs/settings.md lists them.

    Example: perseid up
    """


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit status; messages go to stderr."""
    try:
        done = cli.main(list(arguments), prog_name="perseid", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return 130
    except BrokenPipeError:  # the reader of a pipe has gone: nothing is left to say, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, RuntimeError) as error:
        click.echo(f"perseid: {error}", err=True)
        return 1
    except Exception as error:
        # Of what no command expects it is also said where it happened. The last line is what `perseid up` shows.
        traceback.print_exc()
        click.echo(f"perseid: {type(error).__name__}: {error}", err=True)
        return 1
    return done if isinstance(done, int) else 0


def main() -> None:
    """Entry point of the console script."""
    # Torch's threads wait for each other by spinning. Beside a busy process two threads on two cores trained an epoch
    # in over 200 s so, and in 31 s when they soon give up; alone that costs a tenth. To be set before torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
