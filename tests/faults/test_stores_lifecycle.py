"""Stores in forked processes, and stores that are closed while a model uses them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tenuto
from tenuto.errors import StoreError
from tenuto.testing.kv import TinyLM, tokens
from tenuto.tiers.host import HostTier
from tenuto.tiers.remote import RemoteTier

pytestmark = pytest.mark.usefixtures("one_thread")
ALL, IDS = tenuto.MemoryBudget.keep(1.0), tokens(40)

FORK = """
import os, sys, signal, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import torch, tenuto
torch.set_num_threads(1)
from tenuto.testing.kv import TinyLM, tokens
model, ids, all = TinyLM().eval(), tokens(40), tenuto.MemoryBudget.keep(1.0)
store = tenuto.PrefixStore(f"host:,disk:{sys.argv[1]}", page=8)
with tenuto.attach(model, tenuto.Knorm(), budget=all, store=store) as run:
    model(ids)
    store.flush()
    store._mutex.acquire()  # as if a thread of the parent held it
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        cache = run.restore(ids)
        model(tokens(40, seed=1))
        store.flush()
        os._exit(0 if cache.get_seq_length() == 32 and run.stored(tokens(40, seed=1)) == 40 else 3)
    store._mutex.release()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code, run.stored(tokens(40, seed=1)), run.stored(ids))
store.close()
"""


def test_a_forked_child_reads_and_writes(tmp_path: Path) -> None:
    made = subprocess.run([sys.executable, "-c", FORK, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert made.stdout.split() == ["0", "40", "40"], made.stdout + made.stderr


def test_tiers_make_new_locks_and_threads() -> None:
    host, server = HostTier(100), RemoteTier("redis://127.0.0.1:1")
    held, threads = host._mutex, server._threads
    with held:
        host.after_fork()
        host.put("k", b"page")
    server.after_fork()
    assert host.get("k") == b"page" and server._threads is not threads
    threads.shutdown()
    server.close()


def test_a_closed_store_is_said_at_attach_and_at_the_next_prompt() -> None:
    model, store = TinyLM().eval(), tenuto.PrefixStore("host:", page=8)
    with tenuto.attach(model, tenuto.Knorm(), budget=ALL, store=store) as run:
        model(IDS)
        store.close()
        for use in (lambda: model.generate(IDS, max_new_tokens=2), lambda: model(IDS), lambda: run.restore(IDS)):
            with pytest.raises(StoreError, match="was closed"):
                use()
    with pytest.raises(StoreError, match="was closed"), tenuto.attach(model, tenuto.Knorm(), budget=ALL, store=store):
        pass
    assert model(IDS).logits.shape[1] == 40
