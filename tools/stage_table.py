"""The stages of a finished run as a Markdown table: seconds, tokens, tokens a second, peak memory.

python tools/stage_table.py runs/quickstart
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safeserve.pipeline.stages import stage_markdown, stage_times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    print(stage_markdown(stage_times(parser.parse_args().run)))


if __name__ == "__main__":
    main()
