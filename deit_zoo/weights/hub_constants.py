"""What huggingface_hub makes of its variables, which it reads as it is imported: import it here."""

from __future__ import annotations

import os

from deit_zoo.errors import ZooError

try:
    from huggingface_hub import constants as constants

    # From where it is: what cannot be imported lazily is printed to stdout.
    from huggingface_hub.file_download import try_to_load_from_cache as try_to_load_from_cache
except ValueError as error:
    names = (name for name in sorted(os.environ) if name.startswith("HF_"))
    raise ZooError(
        f"huggingface_hub cannot read one of its variables ({error}); mend or unset the wrong one "
        f"of {', '.join(names)}"
    ) from error
