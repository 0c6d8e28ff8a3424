"""`python -m jaxnn` is the `jaxnn` command."""

from jaxnn.cli import main

raise SystemExit(main())
