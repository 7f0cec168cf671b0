"""Environment variables that handlers inherit: an allow-list, since a secret may stand in any other variable."""

import os
import re
from collections.abc import Mapping, Sequence

_LIST = """
    PATH HOME USER LOGNAME SHELL LANG LANGUAGE TZ TMPDIR TERM
    PYTHONPATH PYTHONHOME PYTHONHASHSEED PYTHONUNBUFFERED PYTHONDONTWRITEBYTECODE PYTHONWARNINGS PYTHONUTF8
    PYTHONIOENCODING PYTHONOPTIMIZE PYTHONNOUSERSITE PYTHONUSERBASE PYTHONDEVMODE PYTHONASYNCIODEBUG PYTHONMALLOC
    PYTHONTRACEMALLOC PYTHONFAULTHANDLER PYTHONPYCACHEPREFIX PYTHONINTMAXSTRDIGITS PYTHONSAFEPATH
    VIRTUAL_ENV CONDA_PREFIX CONDA_DEFAULT_ENV LD_LIBRARY_PATH DYLD_LIBRARY_PATH DYLD_FALLBACK_LIBRARY_PATH
    GOMAXPROCS RAYON_NUM_THREADS VECLIB_MAXIMUM_THREADS
    CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER CUDA_HOME CUDA_PATH NVIDIA_VISIBLE_DEVICES NVIDIA_DRIVER_CAPABILITIES
    HIP_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES GPU_DEVICE_ORDINAL ZE_AFFINITY_MASK ONEAPI_DEVICE_SELECTOR
    SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE NODE_EXTRA_CA_CERTS
    HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY http_proxy https_proxy all_proxy no_proxy
"""
_NAMES = frozenset(_LIST.split())
_PREFIXES = ("LC_", "OMP_", "MKL_", "KMP_", "OPENBLAS_", "NUMEXPR_")
# The service's own, which are never passed on, whatever else is asked for.
_OURS = re.compile(r"CONVENER_.*|PG(PASSWORD|PASSFILE|SERVICEFILE|SSLKEY|SSLPASSWORD)")
_PATTERN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\*?")


def parse_patterns(words: Sequence[str]) -> tuple[str, ...]:
    """Parse `NAME,PREFIX*` of `--pass-env`; raises ValueError for what is no name, and for the service's secrets."""
    patterns = tuple(part.strip() for word in words for part in word.split(",") if part.strip())
    for pattern in patterns:
        if not _PATTERN.fullmatch(pattern):
            raise ValueError(f"--pass-env {pattern!r}: write names of variables, or PREFIX* for all that begin so")
        if _OURS.fullmatch(pattern.rstrip("*")):
            raise ValueError(f"--pass-env {pattern}: variables of the service itself are never passed to handlers")
    return patterns


def inherited(patterns: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables of this process, or of `environment`, that a handler gets; `patterns` name further ones."""
    source = os.environ if environment is None else environment
    return {name: value for name, value in source.items() if _is_allowed(name, patterns)}


def _is_allowed(name: str, patterns: Sequence[str]) -> bool:
    if _OURS.fullmatch(name):
        return False
    prefixes = (*_PREFIXES, *(pattern[:-1] for pattern in patterns if pattern.endswith("*")))
    return name in _NAMES or name in patterns or name.startswith(prefixes)
