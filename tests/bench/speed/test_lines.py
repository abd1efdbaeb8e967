"""Device memory of a benchmark's runs, on an allocator that is counted by hand."""

import torch

from topi.bench.speed import lines as measuring


class Memory:
    """Device memory: what is held now, and at most since the last reset; counted by hand."""

    def __init__(self):
        self.held = self.most = 100

    def take(self, count):
        self.held += count
        self.most = max(self.most, self.held)

    def reset_peak_memory_stats(self, device):
        self.most = self.held

    def max_memory_allocated(self, device):
        return self.most


def test_the_peak_of_the_transformer_leaves_the_vae_out(monkeypatch):
    memory = Memory()
    for name in ("reset_peak_memory_stats", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, getattr(memory, name))
    peak = measuring.PeakMemory(torch.device("cuda"))

    def held_for_a_while(count):
        memory.take(count)
        memory.take(-count)

    held_for_a_while(50)  # the VAE encodes
    for count in (7, 20, 3):
        peak.enter()
        held_for_a_while(count)
        peak.leave()
        held_for_a_while(1)
    held_for_a_while(900)  # and decodes
    peak.stop()
    assert (peak.transformer, peak.whole) == (120, 1000)


def test_the_hooks_of_a_call_read_the_peak(monkeypatch):
    memory = Memory()
    for name in ("reset_peak_memory_stats", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, getattr(memory, name))
    clock = torch.device("cpu")
    monkeypatch.setattr(measuring, "Span", lambda device, span=measuring.Span: span(clock))

    class Block(torch.nn.Module):
        def forward(self, count):
            memory.take(count)
            memory.take(-count)

    block = Block()
    with measuring.watched(block, torch.device("cuda")) as run:
        block(5)
        block(30)
        memory.take(400)
    assert (run.peak_bytes_transformer, run.peak_bytes, len(run.calls)) == (130, 500, 2)
    assert not block._forward_hooks and not block._forward_pre_hooks
