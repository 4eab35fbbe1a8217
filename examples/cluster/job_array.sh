#!/bin/sh
#SBATCH --array=0-3
# One run of a comparison in each job of a Slurm array:
#   sbatch --array=0-3 job_array.sh study.yaml runs.txt OUT [--merge FOLDER ...]
# runs.txt has a line METHOD,RATE,SEED for each job. The job's run is in the folder OUT-INDEX. On one machine,
# without Slurm: for i in 0 1 2 3; do SLURM_ARRAY_TASK_ID=$i sh job_array.sh study.yaml runs.txt OUT; done
set -eu
config=$1 runs=$2 out=$3-$SLURM_ARRAY_TASK_ID
shift 3
only=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$runs")
exec python -m hankelred_llm compare --config "$config" --only "$only" --out "$out" "$@"
