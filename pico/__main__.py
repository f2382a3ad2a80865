"""The installed command `picolm`, and `python -m pico`."""

import sys

from pico.app.process import guard


def main() -> int:
    guard()
    import picolm

    return picolm.main()


if __name__ == "__main__":
    sys.exit(main())
