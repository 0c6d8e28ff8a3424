"""`fit` with the fields of its bundles given one by one, as tests write them: without a warning."""

from jaxnn import fit as bundled
from jaxnn.training.options import Options

FIELDS = {field: name for name in Options._fields for field in getattr(Options(), name)._fields}


def fit(*args, **options):
    """Each option that is a field of a bundle goes into that bundle."""
    bundles = Options()
    for field in FIELDS.keys() & options.keys():
        name = FIELDS[field]
        bundle = getattr(bundles, name)._replace(**{field: options.pop(field)})
        bundles = bundles._replace(**{name: bundle})
    return bundled(*args, **options, **bundles._asdict())
