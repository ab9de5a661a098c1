"""The Java that Spark and HDFS run on, and what to do where there is none."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from fluffle.errors import ConfigError

VERSIONS = (17, 21)
_WANTED = "Spark and HDFS need Java 17 or 21"
_INSTALL = (
    "Debian, Ubuntu: sudo apt-get install openjdk-17-jre-headless;  macOS: brew install openjdk@17, "
    "and JAVA_HOME set to its folder"
)


def find_java() -> str:
    """Return the path of `java`: JAVA_HOME's, or else the one on the PATH, as Spark looks for it.

    Raises ConfigError if there is none, or one that is neither 17 nor 21.
    """
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home, "bin", "java")) if home else shutil.which("java")
    if java is None or not Path(java).is_file():
        where = f"in JAVA_HOME, which is {home}" if home else "on the PATH"
        raise ConfigError(f"{_WANTED}, and there is no java {where}. {_INSTALL}")
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
    found = re.search(r'version "(\d+)', said.stderr)
    if found is None or int(found[1]) not in VERSIONS:
        version = found[1] if found else (said.stderr.strip() or "nothing")
        raise ConfigError(f"{_WANTED}, and {java} is {version}: set JAVA_HOME to the folder of one of them")
    return java
