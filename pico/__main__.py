"""The installed command `picolm`, and `python -m pico`."""

from typing import NoReturn

from pico.app.process import guard, leave


def main() -> NoReturn:
    guard()
    import picolm

    leave(picolm.main())


if __name__ == "__main__":
    main()
