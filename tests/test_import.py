"""Importing bwe changes nothing in the process, shown in fresh interpreters."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def run(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_lazy_and_silent() -> None:
    code = """
import sys, threading, warnings, logging, os, random, signal
before = set(sys.modules)
state = lambda: (threading.active_count(), list(warnings.filters), logging.root.level, list(logging.root.handlers),
                 dict(os.environ), random.getstate(), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
first = state()
import bwe
assert state() == first
heavy = {name.split('.')[0] for name in set(sys.modules) - before}
assert not heavy & {'torch', 'numpy', 'scipy', 'soundfile', 'torchaudio', 'safetensors'}, heavy
assert 'AudioError' in dir(bwe) and issubclass(bwe.AudioError, bwe.BweError)
assert not hasattr(bwe, 'no_such_name')
print(bwe.__version__)
"""
    assert run(code).count(".") == 2


def test_whole_package_leaves_threads_rng_warnings_and_logging_alone() -> None:
    code = """
import logging, random, sys, threading, warnings
import numpy as np, torch, scipy.signal, scipy.optimize, soundfile, safetensors.torch
torch.manual_seed(1); np.random.seed(1); random.seed(1)
def state():
    return (torch.get_num_threads(), torch.get_num_interop_threads(), torch.random.get_rng_state().tolist(),
            torch.get_default_dtype(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(),
            str(np.random.get_state()), random.getstate(), np.geterr(), threading.active_count(),
            list(warnings.filters), logging.root.level, list(logging.root.handlers))
first = state()
import bwe.audio, bwe.cli, bwe.hub, bwe.infer
assert state() == first, [(a, b) for a, b in zip(first, state()) if a != b]
bwe.infer.Extender(bwe.hub.generators.SEANet(bwe.hub.generators.SIZES['tiny']))
"""
    run(code)


def test_function_evaluate_survives_the_submodule_of_its_name() -> None:
    code = """
import sys, types, bwe
module = types.ModuleType('bwe.evaluate')
module.evaluate = lambda: 'called'
bwe.evaluate = module    # what the import system does after `import bwe.evaluate`
print(bwe.evaluate())
"""
    assert run(code) == "called"


def test_extending_opens_no_connection(tiny_folder: Path, tmp_path: Path) -> None:
    code = """
import sys
def refuse(event, arguments):
    if event in ('socket.connect', 'socket.getaddrinfo', 'socket.sendto', 'os.system'):
        raise SystemExit(f'{event} {arguments}')
sys.addaudithook(refuse)
import numpy as np, soundfile, bwe
soundfile.write(sys.argv[2] + '/in.wav', np.random.default_rng(0).standard_normal(8000) * 0.1, 16000)
print(bwe.extend(sys.argv[2] + '/in.wav', model=sys.argv[1], cutoff=7000.0).out_rate)
"""
    assert run(code, str(tiny_folder), str(tmp_path)) == "48000"
