"""Table of how each command of README and documentation is run, on little data."""

from __future__ import annotations

from dataclasses import dataclass

FEW = (
    "--dataset.train.first_n=16 --dataset.val.first_n=4 --optim.scheduler_params.warmup_epochs=1 "
    "--optim.max_epochs=1 --optim.num_workers=0 --logger=tensorboard"
)


@dataclass(frozen=True)
class Run:
    """How a command is run.

    Attributes:
        more: options that make it small.
        needs: commands to run before it.
        says: part of what it prints.
        status: its exit status.
        makes: a file that is there afterwards.
        reason: why it cannot be run to its end; what is left is the nearest check.
    """

    more: str = ""
    needs: tuple[str, ...] = ()
    says: str = ""
    status: int = 0
    makes: str = ""
    reason: str = ""


TRAIN = "fairchem main.py --config configs/oc20/eqv2_dens_demo.yml"
BULK = "fairchem main.py --config configs/mptrj/eqv2_dens_demo.yml --timestamp-id bulk"
PLAIN = "fairchem main.py --config configs/oc20/eqv2_demo.yml --identifier plain"
RELAXING = "fairchem main.py --config examples/relax_demo.yml --identifier relax"
OWN = (
    "dens data convert calculations/ --energy-key REF_energy --forces-key REF_forces "
    "--on-bad skip --out data/own --split by-system --fractions train=0.8,val=0.2"
)
CONVERT = (
    "dens data convert trajectories/ --out data/mine --split by-system --references fit --workers 4"
)
MOLECULES = (
    "dens data convert molecules.npz --labels none --split by-system --group-key smiles "
    "--out data/molecules"
)
RELAXATIONS = (
    "dens data convert relaxations/ --labels none --pairs first-last --split by-system "
    "--out data/relaxations"
)
QM7 = (
    "dens data convert qm7.npz --labels none --pairs pos_mmff94 --split by-system "
    "--group-key smiles --fractions train=0.82,val=0.03,test=0.15 --out data/qm7"
)
TRAIN_QM7 = "fairchem main.py --config configs/qm7/eqv2_morered.yml --identifier qm7"
EXPORT = "dens export checkpoint.pt --out eqv2.pt"
BASELINE_RUN, DENS_RUN = (
    f"fairchem --config configs/oc20/eqv2_{name}.yml --timestamp-id {run} --seed 0 "
    "--dataset.train.first_n=640 --dataset.val.first_n=96 --optim.max_epochs=3 "
    f"--optim.eval_every=24{watch}"
    for name, run, watch in (
        ("demo", "baseline", ""),
        (
            "dens_demo",
            "dens",
            " --optim.watch.denoising_structures=48 --optim.watch.gradients_every=10 "
            "--optim.watch.figures_every=5",
        ),
    )
)
DOWNLOAD = Run(says="wget", reason="downloads many GB; here wget does nothing", status=1)
INSTALL = Run(reason="needs a network and a new environment; .ci/run has them")
SLOW_BENCHMARK = "measures each arm in processes of their own, for minutes"
SLOW_RELAXATIONS = "needs QM7 and a model that was trained on it; tests/ has toy models"
COMPARED = "--every 20 --noise 0.1 0.2 --checkpoint"
RELAXED_QM7, RELAXED_SPEED, RELAXED_FIGURE, *RELAXED_BY_SAMPLERS = (
    f"OMP_NUM_THREADS=1 python -m benchmarks.relaxation --data data/qm7/test {options}"
    for options in (
        "--starts --checkpoint CHECKPOINTS --baselines mmff94 gfn2 --baseline-every 10 "
        "--out result.json",
        "--checkpoint CHECKPOINT --every 10 --speed --baselines mmff94 gfn2",
        "--starts --checkpoint CHECKPOINT --every 10 --figure relaxation.png",
        f"{COMPARED} JT --sampler direct jt itp --name one --out samplers_one.json",
        f"{COMPARED} NOISE --time-checkpoint TIME --sampler as itp --name two "
        "--out samplers_two.json",
        f"{COMPARED} JT --sampler jt --stop-level 0 --patience 300 --max-calls 300 "
        "--name 'one, jt, stop 0' --out samplers_published.json",
    )
)

MORERED_DEMO = "fairchem main.py --config configs/oc20/eqv2_morered_demo.yml --identifier morered"
RELAXED_DEMO = (
    "fairchem main.py --mode run-relaxations --config configs/oc20/eqv2_morered_demo.yml "
    "--checkpoint checkpoints/*-morered/checkpoint.pt"
)
RELAX_SLABS = (
    "OMP_NUM_THREADS=1 python -m benchmarks.relax_slabs --data data/demo_relaxed/val_id "
    "--model demo=DEMO --model ladder=LADDER --labelled data/demo/val_id --out slabs.json"
)
TRAINING_TOO = "trains for minutes; tests/test_relax_benchmarks has toy models"
RELAX_ABLATIONS = (
    "OMP_NUM_THREADS=1 python -m benchmarks.relax_ablations --data data/qm7 --runs runs/ablations "
    "--out ablations.json"
)
RELAX_OC20 = (
    "OMP_NUM_THREADS=1 python -m benchmarks.relax_oc20 --data relaxations/ --runs runs/oc20_relax "
    "--out oc20.json"
)
GPU_KERNELS = "python -m benchmarks.gpu kernels --cpu --tiny --sizes S --ops s2 rotate_in"
ESEN_DEMO = "fairchem main.py --config configs/oc20/esen_dens_demo.yml --timestamp-id esen --seed 0"
CONSERVED = (
    "python -m benchmarks.nve --model direct=A.pt --model gradient=B.pt --structure aspirin.xyz"
)

OF_FAIRCHEM2 = "needs fairchem-core 2; its tests run it there, here 1.10 refuses it"
CONVERT2 = "dens data convert trajectories/ --format aselmdb --out data/own2 --split by-system"
DEMO2 = "configs/fairchem2/esen_dens_demo.yaml"

TABLE = {
    # installation, data and training
    "pip install '.[fairchem1]'": INSTALL,
    "pip install torch": INSTALL,
    "pip wheel --no-deps .": INSTALL,
    "pip install --no-deps fairchem-core==1.10.0": INSTALL,
    "pip install '.[fairchem1-unpinned]'": INSTALL,
    # fairchem-core 2, which is not installed where this runs
    "pip install '.[fairchem2]'": INSTALL,
    "dens data demo data/demo2 --format aselmdb": Run(
        says="data/demo2 already exists", status=2, reason="takes a minute; tests/data make less"
    ),
    f"fairchem main.py --config {DEMO2}": Run(
        says="is a config for fairchem-core 2", status=2, reason=OF_FAIRCHEM2
    ),
    f"fairchem -c {DEMO2} steps=2400 job.seed=1": Run(
        says="error: ", status=2, reason=OF_FAIRCHEM2
    ),
    f"dens evaluate --config {DEMO2} --checkpoint runs/esen_dens_demo/*/checkpoints/final": Run(
        says="checkpoints/final does not exist", status=2, reason=OF_FAIRCHEM2
    ),
    "OMP_NUM_THREADS=1 python -m benchmarks.step2 --structures 4 --rounds 12 "
    "--set max_neighbors=20": Run("--help", says="usage:", reason=OF_FAIRCHEM2),
    f"dens check {DEMO2} job.seed=1": Run(
        says="is a config for fairchem-core 2", status=2, reason=OF_FAIRCHEM2
    ),
    "dens inspect uma-s-1p1.pt --dataset oc20": Run(
        says="--dataset oc20 is for checkpoints of fairchem-core 2", status=2, reason=OF_FAIRCHEM2
    ),
    "dens --help": Run(says="dashboard"),
    "dens recipes": Run(says="oc20/eqv2_dens_demo"),
    "dens recipes copy oc20/eqv2_dens my_configs": Run(makes="my_configs/oc20/base.yml"),
    "dens doctor": Run(says="the program of dens"),
    CONVERT2: Run(makes="data/own2/train/data.0000.aselmdb"),
    "dens data check data/own2": Run(needs=(CONVERT2,), says="ok"),
    "dens data stats data/own2 --out stats2.yaml": Run(needs=(CONVERT2,), makes="stats2.yaml"),
    **{
        f"make docs{what}": Run(reason="builds the site, for minutes; .ci/run does")
        for what in ("", "-check", "-links")
    },
    "python docs/figures/draw.py": Run("--out pictures", makes="pictures/slab.png"),
    "make demo": Run(
        says="dens evaluate", reason="installs, then trains for minutes; .ci/run does both"
    ),
    "dens data demo data/demo": Run(
        says="data/demo already exists", status=2, reason="takes a minute; tests/data make less"
    ),
    "dens data demo data/demo_bulk --bulk": Run(
        says="data/demo_bulk already exists",
        status=2,
        reason="takes a minute; tests/data make less",
    ),
    BULK: Run(
        f"{FEW} --optim.watch.denoising_structures=0", makes="checkpoints/bulk/checkpoint.pt"
    ),
    "dens evaluate --config configs/mptrj/eqv2_dens_demo.yml "
    "--checkpoint checkpoints/bulk/checkpoint.pt": Run(FEW, needs=(BULK,), says="stress_mae"),
    "python examples/relax_cells.py checkpoints/bulk/checkpoint.pt": Run(
        "--help", says="usage", reason="relaxes six crystals for a minute"
    ),
    "dens data mptrj MPtrj_2022.9_full.json --out data/mptrj": Run(
        "--val 0.4", says="corrected energies; stress, in kbar with VASP's sign"
    ),
    "dens data oc20 s2ef_train_2M --out data/oc20/s2ef/2M_total/train": Run(
        says="0 of them from MD, 3 not"
    ),
    "dens data demo data/demo_relaxed --relaxed": Run(
        says="data/demo_relaxed already exists",
        status=2,
        reason="takes minutes; tests/data make less",
    ),
    "dens data download --task s2ef --split 2M --ref-energy --num-workers 8 "
    "--data-path data/oc20": DOWNLOAD,
    "dens data download --task s2ef --split val_id --ref-energy --num-workers 8 "
    "--data-path data/oc20": DOWNLOAD,
    TRAIN: Run("--optim.max_epochs=1 --optim.num_workers=0", makes="checkpoint.pt"),
    "fairchem main.py --config configs/oc20/eqv2_dens.yml --num-gpus 8 --num-nodes 2 --submit": Run(
        status=2, says="error: ", reason="needs SLURM, GPUs and OC20"
    ),
    "fairchem main.py --config CONFIG --num-gpus 8 --num-nodes 2 --submit --slurm-partition gpu "
    "--slurm-timeout 24": Run(status=2, says="--submit without SLURM", reason="needs SLURM"),
    "fairchem -c CONFIG.yaml job.scheduler.mode=SLURM job.scheduler.num_nodes=2 "
    "job.scheduler.ranks_per_node=8": Run(status=2, says="error: ", reason=OF_FAIRCHEM2),
    "dens check CONFIG --num-gpus 16": Run("--num-gpus 1", says="ready to train"),
    "fairchem main.py --config configs/oc20/eqv2_dens.yml": Run(
        status=2, says="no data there: dataset.train.src = data/oc20", reason="needs OC20"
    ),
    "dens check my_config.yml --num-gpus 16": Run("--num-gpus 1", says="ready to train"),
    # data
    CONVERT: Run("--workers 1", makes="data/mine/train/data.0000.lmdb"),
    "dens data check data/mine/train": Run(needs=(CONVERT,)),
    OWN: Run(says="keep their own energy", makes="data/own/train/data.0000.lmdb"),
    "dens data check data/own": Run(needs=(OWN,)),
    "dens data stats data/own/train --cutoff 12 --max-neighbors 20": Run(
        needs=(OWN,), says="avg_num_nodes"
    ),
    "dens check own.yml": Run(needs=(OWN,), says="ready to train"),
    "fairchem main.py --config own.yml": Run(
        "--optim.num_workers=0 --logger=tensorboard",
        needs=(OWN,),
        makes="checkpoints/*/checkpoint.pt",
    ),
    "dens data stats data/mine/train --cutoff 12 --max-neighbors 20 --out data/mine/stats.yml": Run(
        needs=(CONVERT,), makes="data/mine/stats.yml"
    ),
    "dens data oc20 s2ef_train_all s2ef_md --ref-energy --out data/oc20/s2ef/all_md/train "
    "--workers 8": Run("--workers 1", says="3 of them from MD, 3 not"),
    "dens data md17 aspirin --download --out data/md17/aspirin": Run(
        "--train 4 --val 4", reason="downloads; here the file is there already", says="aspirin"
    ),
    "dens data md17 ethanol --source sgdml_ethanol.npz --train 850 --val 50 "
    "--out data/md17/ethanol": Run(makes="data/md17/ethanol/test/data.0000.lmdb"),
    MOLECULES: Run(
        says="2 structures without a group", makes="data/molecules/train/data.0000.lmdb"
    ),
    "dens data convert relaxed.xyz --labels none --pairs start.xyz --out data/pairs": Run(
        says="12 structures with a start (pos_start); 0 have none"
    ),
    RELAXATIONS: Run(says="of 10 files the last frame is taken"),
    "dens data check data/relaxations": Run(needs=(RELAXATIONS,), says="have a start"),
    "dens data stats data/molecules/train --cutoff 5": Run(
        needs=(MOLECULES,), says="no energies or forces: structures only"
    ),
    "dens data qm7x qm7x/ --duplicates qm7x/DupMols.dat --out data/qm7x": Run(
        says="1 structures of the 1 listed as duplicates: left out"
    ),
    "dens data qm9 dsgdb9nsd.xyz.tar.bz2 --uncharacterized uncharacterized.txt --out data/qm9": Run(
        says="1 structures of the 1 listed as uncharacterized: left out"
    ),
    # relaxation
    QM7: Run(says="40 structures with a start (pos_start); 0 have none"),
    TRAIN_QM7: Run(
        "--optim.scheduler_params.warmup_epochs=1 --optim.max_epochs=2 --logger=tensorboard",
        needs=(TRAIN, QM7),
        says="RMSD after relaxation, sigma = 0.10 Å (Å)",
        makes="checkpoints/*-qm7/checkpoint.pt",
    ),
    "dens relax start.xyz --checkpoint checkpoints/*-qm7/checkpoint.pt --out relaxed.traj": Run(
        needs=(TRAIN_QM7,), says="relaxed.traj: 12 structures", makes="relaxed.traj"
    ),
    "dens relax slab.traj --checkpoint checkpoint.pt --out relaxed_slab.traj": Run(
        needs=(TRAIN,), says="relaxed_slab.traj: 1 structure,", makes="relaxed_slab.traj"
    ),
    "dens relax slab.traj --checkpoint checkpoint.pt --polish bfgs --fmax 0.05 "
    "--out polished.traj": Run(
        "--fmax 50", needs=(TRAIN,), says="polished.traj: 1 structure,", makes="polished.traj"
    ),
    # launcher and long runs
    "fairchem --config configs/oc20/eqv2_dens_demo.yml --mode validate "
    "--checkpoint checkpoint.pt": Run(FEW, needs=(TRAIN,), says="force MAE (eV/Å)"),
    "fairchem --config configs/oc20/eqv2_dens_demo.yml --optim.dens.sigma=0.05 "
    "--logger=tensorboard --quiet": Run(FEW),
    "fairchem --help": Run(says="--optim.dens.sigma=0.15"),
    "dens evaluate --config configs/oc20/eqv2_dens_demo.yml --checkpoint checkpoint.pt": Run(
        "--optim.num_workers=0", needs=(TRAIN,), says="denoising_pos_mae"
    ),
    ESEN_DEMO: Run(FEW, makes="checkpoints/esen/checkpoint.pt"),
    "dens evaluate --config configs/oc20/esen_dens_demo.yml "
    "--checkpoint checkpoints/esen/checkpoint.pt --dataset.val.first_n=48": Run(
        "--dataset.val.first_n=4 --optim.num_workers=0",
        needs=(ESEN_DEMO,),
        says="denoising_pos_mae",
    ),
    "fairchem --config CONFIG --timestamp-id my-run": Run(
        FEW, makes="checkpoints/my-run/checkpoint.pt"
    ),
    "python tests/kill_and_resume.py --steps 200 --kills 20": Run(
        "--help", says="--kills", reason="tests/fairchem1/train/test_resume.py runs it, for less"
    ),
    # checkpoints
    "dens inspect checkpoint.pt": Run(needs=(TRAIN,), says="layout"),
    EXPORT: Run(needs=(TRAIN,), makes="eqv2.pt"),
    "fairchem --config configs/oc20/eqv2_dens_demo.yml --checkpoint eqv2.pt": Run(
        FEW, needs=(EXPORT,), says="from forces times -"
    ),
    PLAIN: Run(FEW, makes="checkpoints/*-plain/checkpoint.pt"),
    "fairchem main.py --config examples/finetune_demo.yml "
    "--checkpoint checkpoints/*-plain/checkpoint.pt": Run(FEW, needs=(PLAIN,), says="zero effect"),
    RELAXING: Run(FEW, makes="checkpoints/*-relax/checkpoint.pt"),
    "python examples/relax_demo.py checkpoints/*-relax/checkpoint.pt": Run(
        "--help", needs=(RELAXING,), says="usage", reason="relaxes ten slabs for minutes"
    ),
    # monitoring
    BASELINE_RUN: Run(FEW, makes="logs/tensorboard/baseline/metrics.jsonl"),
    DENS_RUN: Run(FEW, makes="logs/tensorboard/dens/metrics.jsonl"),
    "dens report baseline dens --out report.html": Run(
        needs=(BASELINE_RUN, DENS_RUN), makes="report_files/overview.png"
    ),
    "dens dashboard --entity TEAM --project PROJECT --dry-run": Run(says='"entity"'),
    # studies and benchmarks
    "python -m experiments.run STUDY --jobs 2 --data PATH": Run(
        "--list", says="demo-dens-seed0", reason="trains for hours"
    ),
    "python -m experiments.run STUDY --report": Run(says="", makes="docs/results/demo.png"),
    "python -m experiments.run aspirin --only 'frames200_long-*' --data PATH": Run(
        "--list", says="frames200_long-dens-seed0", reason="trains for hours"
    ),
    "python -m benchmarks.protections": Run("--rounds 1 --steps 1", says="together"),
    "python -m benchmarks.logging --config configs/oc20/eqv2_dens_demo.yml --steps 100 "
    "--dataset.val.src=data/demo/train --dataset.val.first_n=1600 --optim.num_workers=0": Run(
        "--steps 2 --evaluations 1 --dataset.val.first_n=8", says="denoising"
    ),
    "OMP_NUM_THREADS=1 python -m benchmarks.curve --steps 300": Run("--steps 6", says="control 2"),
    "OMP_NUM_THREADS=1 python -m benchmarks.neighbors": Run("--rounds 1", says="ratio"),
    CONSERVED: Run(
        "--help", says="--timestep", reason="needs trained models; tests/test_benchmarks starts it"
    ),
    "python -m benchmarks.launches --sizes M L": Run("--sizes S --arms ours", says="dense.py"),
    "OMP_NUM_THREADS=1 python -m benchmarks.regions --size S": Run(
        "--rounds 1", says="SO(2) convolution"
    ),
    "OMP_NUM_THREADS=1 python -m benchmarks.inference --size S": Run(
        "--help", says="--size", reason=SLOW_BENCHMARK
    ),
    "OMP_NUM_THREADS=1 python -m benchmarks.step --against fairchem --size M --out step.json": Run(
        "--help", says="--against", reason=SLOW_BENCHMARK
    ),
    "OMP_NUM_THREADS=1 python -m benchmarks.scaling --size S --plot scaling.png "
    "--out scaling.json": Run("--help", says="--plot", reason=SLOW_BENCHMARK),
    RELAXED_QM7: Run("--help", says="--baselines", reason=SLOW_RELAXATIONS),
    RELAXED_SPEED: Run("--help", says="--speed", reason=SLOW_RELAXATIONS),
    RELAXED_FIGURE: Run("--help", says="--figure", reason=SLOW_RELAXATIONS),
    **{
        command: Run("--help", says="--sampler", reason=SLOW_RELAXATIONS)
        for command in RELAXED_BY_SAMPLERS
    },
    RELAX_ABLATIONS: Run("--help", says="lmax 3", reason=TRAINING_TOO),
    RELAX_OC20: Run("--help", says="--folds", reason=TRAINING_TOO),
    "python -m benchmarks.relax_oc20 --table oc20.json": Run(
        "--help", says="--table", reason="needs a result of the command before it"
    ),
    "python -m benchmarks.relaxation --table docs/results/relaxation/qm7_*.json": Run(
        says="GFN2-xTB"
    ),
    "fairchem main.py --config configs/oc20/eqv2_dens_relax_demo.yml --identifier ladder": Run(
        FEW, needs=(TRAIN,), makes="checkpoints/*-ladder/checkpoint.pt"
    ),
    MORERED_DEMO: Run(
        "--optim.max_epochs=2 --logger=tensorboard",
        needs=(TRAIN,),
        makes="checkpoints/*-morered/checkpoint.pt",
    ),
    RELAXED_DEMO: Run(
        needs=(MORERED_DEMO,),
        says="average_distance_within_threshold",
        makes="results/*/relaxed_positions.npz",
    ),
    RELAX_SLABS: Run("--help", says="--labelled", reason="needs trained models; takes minutes"),
    "python -m benchmarks.relax_slabs --table docs/results/relaxation/slabs_val_id.json": Run(
        says="morered"
    ),
    "python -m benchmarks.gpu smoke -- step --sizes M L -- kernels --ops s2": Run(
        "--help", says="--backends", reason="needs a GPU; the next one runs on a CPU"
    ),
    GPU_KERNELS: Run(makes="results/gpu/kernels.json"),
    "python -m benchmarks.gpu --table results/gpu/kernels.json": Run(
        needs=(GPU_KERNELS,), says="rotate_in"
    ),
    "python -m benchmarks.kernels_sm90": Run("softmax", says="| softmax, backward | bf16 |"),
    "python -m benchmarks.floors --size M --structures 16": Run(says="SO(2) convolution 2"),
    "OMP_NUM_THREADS=1 python -m benchmarks.floors --size M --structures 1 --device cpu": Run(
        says="Gflop/s"
    ),
    "python -m benchmarks.data": Run(
        "--help", says="--data", reason="makes and converts 2,000 slabs"
    ),
}
