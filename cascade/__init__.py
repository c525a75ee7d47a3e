"""The science: tensors in, tensors out. No files, no Prefect.

It is the one package that is installed. ``storage``, ``configs``, ``tasks`` and ``flows`` are folders at the top of the
repository, and links here make them parts of it: ``from cascade.storage.errors import ...``. So no environment gets a
package called ``tasks``, and a project that has one of its own does not break the program.
"""

import logging

logging.getLogger(__name__).addHandler(logging.NullHandler())
