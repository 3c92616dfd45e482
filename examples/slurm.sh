#!/usr/bin/env bash
# Train on the GPUs of one node with fairchem-core 1.10, as a job that stops before its time is over,
# waits in the queue again and goes on. One task starts a rank for each GPU. For several nodes,
# --submit writes the job itself.
#     sbatch examples/slurm.sh CONFIG [OPTIONS OF FAIRCHEM]
#SBATCH --job-name=dens
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
#SBATCH --signal=TERM@300
set -euo pipefail

config=${1:?usage: sbatch examples/slurm.sh CONFIG [OPTIONS OF FAIRCHEM]}
shift
status=0
# The id of the job stays when it is requeued, so that the run finds its checkpoint.
srun --ntasks=1 fairchem --config "$config" --num-gpus "${SLURM_GPUS_ON_NODE:-1}" \
  --timestamp-id "$SLURM_JOB_NAME-$SLURM_JOB_ID" "$@" || status=$?
if [ "$status" -eq 143 ]; then # after SIGTERM, when the step is saved
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
