#!/bin/sh
# Runs the filter with Apache Spark; the one command, in any folder, needs a JRE (Debian: default-jre-headless):
#
#     sh tests/spark/run.sh
#
# It installs pyspark and this package in an environment of their own (in $SPARK_VENV, else in a
# folder of the temporary directory, kept for the next time) and starts run.py, which says what is shown.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
venv=${SPARK_VENV:-${TMPDIR:-/tmp}/llmfilter-spark-$(id -u)}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet 'pyspark>=4,<5' "$here/../.."
exec "$venv/bin/python" "$here/run.py"
