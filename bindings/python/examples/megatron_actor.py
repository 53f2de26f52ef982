"""A Megatron-core actor that sends its weights to vLLM after a training step."""

import weightsync as ws


def parameters(chunks):
    """Parameters and buffers of a rank's model chunks, by the layout's names."""
    found = {}
    for i, chunk in enumerate(chunks):
        prefix = f"model{i}." if len(chunks) > 1 else ""
        for name, tensor in [*chunk.named_parameters(), *chunk.named_buffers()]:
            # Wrappers such as DDP and Float16Module each add a "module.".
            found[prefix + name.replace("module.", "")] = getattr(tensor, "data", tensor)
    return found


class WeightSender:
    """What an actor keeps between steps. Every trainer rank has one."""

    def __init__(self, config, trainer, engine):
        """config: config.json, its text or a dict. trainer, engine: parallel
        sizes, as "tp=2,pp=2" or {"tp": 2, "pp": 2}; the engines' ranks follow
        those of the trainer."""
        self.source = ws.Layout.from_model(config, "megatron", trainer)
        first = self.source.rank_count
        engines = ws.Layout.from_model(config, "vllm", engine, first_rank=first)
        self.plan = ws.Plan(self.source, engines)

    def connect(self, transport, rank, chunks):
        """Binds this rank's memory by name; once, after the ranks have met."""
        mine = parameters(chunks)
        wanted = [buffer.name for buffer in self.source.buffers(rank)]
        self.session = ws.Session(transport)
        self.session.bind({name: mine[name] for name in wanted}, side="source")
        self.request = self.session.request(self.session.load(self.plan))

    def send(self, version):
        """After a step: sends the weights as `version`, and says how it ended."""
        self.request.submit(version, verify=True)
        self.request.wait()
        return self.request.outcome()
