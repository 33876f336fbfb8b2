"""Packaging of dd-plugins: two packages, the command `dd-bench`, and the built-in plugins as entry points."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = next(
    line.split('"')[1]
    for line in (ROOT / "dd_plugins" / "__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)

PLUGINS = {
    "dd_plugins.parameterization": [
        "glad = dd_plugins.parameterizations.hpd:GLaD",
        "h-pd = dd_plugins.parameterizations.hpd:HPD",
        "haba = dd_plugins.parameterizations.haba:HaBa",
        "hmn = dd_plugins.parameterizations.hmn:HMN",
        "idc = dd_plugins.parameterizations.idc:IDC",
        "pixel = dd_plugins.parameterizations.pixel:Pixel",
        "real = dd_plugins.parameterizations.real:Real",
        "rtp = dd_plugins.parameterizations.rtp:RTP",
    ],
    "dd_plugins.objective": [
        "bptt = dd_plugins.objectives.bptt:BPTT",
        "cafe = dd_plugins.objectives.cafe:CAFE",
        "dc = dd_plugins.objectives.dc:DC",
        "dm = dd_plugins.objectives.dm:DM",
        "dsa = dd_plugins.objectives.dsa:DSA",
        "haba = dd_plugins.objectives.haba:HaBaMatching",
        "idc = dd_plugins.objectives.idc:IDC",
        "mtt = dd_plugins.objectives.mtt:MTT",
    ],
    "dd_plugins.dataset": [
        "cifar10 = dd_plugins.datasets.torchvision_sets:Cifar10",
        "cifar100 = dd_plugins.datasets.torchvision_sets:Cifar100",
        "digits = dd_plugins.datasets.digits:Digits",
        "fashion-mnist = dd_plugins.datasets.torchvision_sets:FashionMnist",
        "folder = dd_plugins.datasets.folder:ImageFolder",
        "imagenet = dd_plugins.datasets.imagenet:ImageNetSubset",
        "mnist = dd_plugins.datasets.torchvision_sets:Mnist",
        "parquet = dd_plugins.datasets.parquet:Parquet",
        "svhn = dd_plugins.datasets.torchvision_sets:Svhn",
        "tiny-imagenet = dd_plugins.datasets.tiny_imagenet:TinyImageNet",
    ],
    "dd_plugins.network": [
        "alexnet = dd_plugins.networks.alexnet:AlexNet",
        "convnet = dd_plugins.networks.convnet:ConvNet",
        "densenet-idc = dd_plugins.networks.densenet:DenseNetIDC",
        "densenet121 = dd_plugins.networks.densenet:DenseNet121",
        "lenet = dd_plugins.networks.lenet:LeNet",
        "mlp = dd_plugins.networks.mlp:MLP",
        "resnet18 = dd_plugins.networks.resnet:ResNet18",
        "resnet18-ap = dd_plugins.networks.resnet:ResNet18AP",
        "vgg11 = dd_plugins.networks.vgg:VGG11",
        "vgg16 = dd_plugins.networks.vgg:VGG16",
        "vit = dd_plugins.networks.vit:ViT",
    ],
    "dd_plugins.prior": [
        "autoencoder-kl = dd_plugins.priors.autoencoder_kl:AutoencoderKLDecoder",
        "gan = dd_plugins.priors.small:SmallGenerator",
        "stylegan-xl = dd_plugins.priors.stylegan:StyleGan",
        "vae = dd_plugins.priors.vae:SmallAutoEncoder",
    ],
    "dd_plugins.pruning": [
        "aum = dd_plugins.pruning.strategies:AUM",
        "ccs = dd_plugins.pruning.strategies:CCS",
        "el2n = dd_plugins.pruning.strategies:EL2N",
        "k-center = dd_plugins.pruning.strategies:KCenter",
        "random = dd_plugins.pruning.strategies:Random",
    ],
    "dd_plugins.score": [
        "aum = dd_plugins.pruning.scores:AUMScore",
        "aum-probability = dd_plugins.pruning.scores:AUMProbabilityScore",
        "el2n = dd_plugins.pruning.scores:EL2NScore",
        "entropy = dd_plugins.pruning.scores:EntropyScore",
        "forgetting = dd_plugins.pruning.scores:ForgettingScore",
        "grand = dd_plugins.pruning.scores:GraNdScore",
        "herding = dd_plugins.pruning.features:HerdingScore",
        "k-center = dd_plugins.pruning.features:KCenterScore",
        "loss = dd_plugins.pruning.scores:LossScore",
        "random = dd_plugins.pruning.scores:RandomScore",
    ],
    "dd_plugins.selector": [
        "double-end = dd_plugins.pruning.selectors:DoubleEnd",
        "keep-easy = dd_plugins.pruning.selectors:KeepEasy",
        "keep-hard = dd_plugins.pruning.selectors:KeepHard",
        "stratified = dd_plugins.pruning.selectors:Stratified",
        "top = dd_plugins.pruning.selectors:Top",
    ],
    "dd_plugins.benchmark": [
        "dc-bench = benchmark_adapters.dc_bench:DCBench",
        "dd-ranking = benchmark_adapters.dd_ranking:DDRankingBenchmark",
        "native = benchmark_adapters.native:NativeBenchmark",
    ],
    "dd_plugins.format": [
        "dc = benchmark_adapters.formats.published:DC",
        "dc-bench = benchmark_adapters.formats.dc_bench:DCBenchFormat",
        "ddranking = benchmark_adapters.formats.published:DDRanking",
        "imagefolder = benchmark_adapters.formats.imagefolder:ImageFolders",
        "mtt = benchmark_adapters.formats.published:MTT",
        "parquet = benchmark_adapters.formats.parquet:ParquetFormat",
        "pt = benchmark_adapters.formats.pt:PtFormat",
    ],
    "dd_plugins.method": ["dd-plugins = dd_plugins.methods"],
    "dd_plugins.protocol": ["dd-plugins = dd_plugins.protocols"],
    "console_scripts": ["dd-bench = benchmark_adapters.cli.main:run"],
}

EINOPS = ["einops>=0.6"]  # what the networks of DC-BENCH's checkout import
DIFFUSERS = ["diffusers>=0.30"]
# It pins numpy below 2, which pyarrow from 24 on does not take.
DDRANKING = ["ddranking==0.2.0", "pyarrow<24"]
TEST = [
    "pytest>=8",
    "nbclient>=0.10",
    "ipykernel>=6",
    "pytest-xdist>=3.5",
    "hypothesis>=6.100",
    "aum>=1.0.2",
    *DIFFUSERS,
]
LINT = ["ruff>=0.9", "mypy>=1.13", "import-linter>=2.1", "types-PyYAML", "types-psutil", "pytest>=8"]

setup(
    name="dd-plugins",
    version=VERSION,
    description="Interchangeable parts and fair comparisons for dataset distillation",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["dd_plugins*", "benchmark_adapters*"]),
    package_data={
        "dd_plugins": ["py.typed", "methods/*.yaml", "protocols/*.yaml"],
        "benchmark_adapters": [
            "py.typed",
            "references/*.yaml",
            "templates/*/*.txt",
        ],
    },
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "numpy>=1.26",
        "scipy>=1.12",
        "kornia>=0.7",
        "safetensors>=0.4.3",
        "pydantic>=2.7",
        "typing-extensions>=4.4",
        "PyYAML>=6",
        "typer>=0.15",
        "rich>=13",
        "scikit-learn>=1.4",
        "matplotlib>=3.8",
        "pillow>=10.1",
        "pyarrow>=15",
        "psutil>=5.9",
        "filelock>=3.30",
    ],
    extras_require={
        "diffusers": DIFFUSERS,
        "ddranking": DDRANKING,
        "einops": EINOPS,
        "test": TEST,
        "lint": LINT,
        "dev": [*TEST, *LINT, "tox>=4.20"],
    },
    entry_points=PLUGINS,
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
