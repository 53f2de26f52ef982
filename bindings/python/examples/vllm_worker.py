"""A vLLM worker that receives weights from a trainer between requests."""

import weightsync as ws


def parameters(model, draft=None):
    """What a worker's model holds, by the layout's names."""
    found = {}
    for prefix, module in [("", model), ("draft.", draft)]:
        if module is not None:
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                found[prefix + name] = getattr(tensor, "data", tensor)
    return found


class WeightReceiver:
    """What a worker keeps between steps. Every rank of every replica has one."""

    def __init__(self, config, trainer, engine, framework="megatron"):
        """config: config.json, its text or a dict. trainer, engine: parallel
        sizes, as "tp=2,pp=2" or {"tp": 2, "pp": 2}; the engines' ranks follow
        those of the trainer."""
        source = ws.Layout.from_model(config, framework, trainer)
        first = source.rank_count
        self.engines = ws.Layout.from_model(config, "vllm", engine, first_rank=first)
        self.plan = ws.Plan(source, self.engines)

    def connect(self, transport, rank, model, draft=None):
        """Binds this rank's memory by name; once, after the ranks have met."""
        mine = parameters(model, draft)
        wanted = [buffer.name for buffer in self.engines.buffers(rank)]
        self.session = ws.Session(transport)
        self.session.bind({name: mine[name] for name in wanted}, side="destination")
        self.request = self.session.request(self.session.load(self.plan))

    def receive(self, version):
        """With no request running: takes `version`, and says whether the whole
        replica has it. Only then may it serve."""
        self.request.submit(version, verify=True)
        self.request.wait()
        return self.request.outcome().copy is ws.Outcome.COMPLETE
