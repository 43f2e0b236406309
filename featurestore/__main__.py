"""``python -m featurestore`` is ``fs``, for environments whose scripts are not on the path."""

from featurestore.cli.main import main

if __name__ == "__main__":
    main()
