"""Everything at the paper's size on a SLURM cluster: `python examples/slurm.py`, on a login node or in a job.

Each worker is a SLURM job with one GPU. Workers come when SLURM starts them, and end with their jobs; the run goes on
with those that are there. Run it again after a stop: it computes what is missing.
"""

from dask_jobqueue import SLURMCluster

from purifier_core.lab import runner
from purifier_core.lab.experiments import EXPERIMENTS

if __name__ == "__main__":
    cluster = SLURMCluster(
        queue="gpu",  # adapt: your partition
        account=None,  # adapt: your account, where one is asked for
        walltime="12:00:00",  # longer than the longest cell; what a job does not finish is begun anew
        cores=1,  # one task at a time in a worker
        processes=1,
        job_cpu=8,  # adapt: CPU cores of a job
        memory="32GB",  # adapt: Dask ends a worker that takes more
        job_extra_directives=["--gres=gpu:1"],  # adapt: how your cluster is asked for a GPU
        worker_extra_args=["--resources", "GPU=1"],
        job_script_prologue=[  # adapt: what a job must run to find this checkout, its environment and the data
            "source $HOME/purifier/.venv/bin/activate",
            "export PURIFIER_DATA=$HOME/datasets",
        ],
    )
    cluster.scale(jobs=8)  # adapt: how many GPUs at once
    # records and models go to $PURIFIER_HOME, else to data/ in the checkout: a folder that every node sees
    experiments = [kind(profile="paper", seeds="0-2", device="cuda").whole() for kind in EXPERIMENTS.values()]
    runner.run_all(experiments, scheduler=cluster.scheduler_address)
