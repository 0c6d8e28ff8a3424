"""`python -m jaxnn` is the `jaxnn` command."""

from jaxnn.cli.parser import main

raise SystemExit(main())
