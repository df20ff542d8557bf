"""A sparse autoencoder by Signum, or by Adam on votes: mpirun -np 4 python pytorch_sparse_autoencoder.py

All of Horovod's names come from horovod_sign.torch, by one changed import line. Lines that a plain Horovod script does
not have are tagged "horovod_sign".
"""

import sys
import time
from pathlib import Path

import horovod.torch as horovod
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import horovod_sign.torch as hvd  # horovod_sign: in place of `import horovod.torch as hvd`

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from devices import pin_torch
from progress import Progress
from sparse_autoencoder import describe, load, parse_arguments
from torch_checkpoints import resume, write
from traffic import describe_bytes


class SparseAutoencoder(torch.nn.Module):
    """Explains an input by the k features that answer most; unit vectors of the decoder are what features mean."""

    def __init__(self, inputs: int, features: int, k: int):
        super().__init__()
        self.k = k
        self.encoder = torch.nn.Linear(inputs, features)
        self.decoder = torch.nn.Parameter(F.normalize(self.encoder.weight.detach().clone()))
        self.bias = torch.nn.Parameter(torch.zeros(inputs))
        torch.nn.init.zeros_(self.encoder.bias)

    def forward(self, x):
        """(reconstruction, how strongly which features are on)."""
        strengths, which = self.encoder(x - self.bias).relu().topk(self.k, sorted=False)
        explained = F.embedding_bag(which, self.decoder, per_sample_weights=strengths, mode="sum")
        return explained + self.bias, strengths, which

    @torch.no_grad()
    def normalize(self):
        """Unit vectors again, or strengths could shrink at no cost."""
        self.decoder.copy_(F.normalize(self.decoder))


def make_optimizer(args, model):
    optimizer = torch.optim.Adam(model.parameters(), args.lr)
    if args.optimizer == "signum":
        optimizer = hvd.Signum(model.parameters(), args.lr, args.momentum)  # horovod_sign
    wrapper = horovod if args.optimizer == "float32-adam" else hvd
    return wrapper.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())


def train(args, epoch, model, loader, optimizer, scheduler):
    loader.sampler.set_epoch(epoch)
    progress = Progress(loader, f"epoch {epoch}", shown=hvd.rank() == 0, lines=False)
    for step, (x,) in enumerate(progress):
        optimizer.zero_grad()
        error = F.mse_loss(model(x)[0], x)
        error.backward()
        optimizer.step()
        model.normalize()
        scheduler.step()
        if hvd.rank() == 0 and step % args.log_interval == 0:
            progress.note(f"squared error {error.item():.4f}")


@torch.no_grad()
def test(model, x):
    """(fraction of the variance that is not explained, features that no patch turns on), each rank on its share."""
    mine = x[hvd.rank() :: hvd.size()]
    fired, error = torch.zeros(len(model.decoder), device=x.device), x.new_zeros((), dtype=torch.float64)
    for batch in mine.split(1000):
        reconstruction, strengths, which = model(batch)
        error += (reconstruction - batch).square().sum()
        fired[which[strengths > 0]] = 1
    error, fired = hvd.grouped_allreduce([error, fired.double()], name="test", op=hvd.Sum)
    return error.item() / (x - x.mean(0)).square().sum().item(), (fired == 0).sum().item()


def save(args, epoch, model, optimizer, scheduler):
    """All that is needed to go on."""
    of_optimizer = optimizer.state_dict()
    if args.optimizer != "float32-adam":  # horovod_sign
        of_optimizer = hvd.gather_state_dict(optimizer)  # horovod_sign: with the momenta of all ranks, on rank 0
    write(args.checkpoint.format(epoch=epoch), epoch, model, of_optimizer, scheduler)


def main(argv=None):
    args = parse_arguments(__doc__, argv)
    hvd.init()
    device = pin_torch(args, hvd.local_rank())
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)

    name, *patches = load(args)
    train_x, test_x = (torch.from_numpy(x).to(device) for x in patches)
    sampler = DistributedSampler(TensorDataset(train_x), hvd.size(), hvd.rank(), seed=args.seed)
    loader = DataLoader(TensorDataset(train_x), args.batch_size, sampler=sampler, drop_last=True)

    model = SparseAutoencoder(train_x.shape[1], args.features, args.k).to(device)
    optimizer = make_optimizer(args, model)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * len(loader))
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    done = resume(args.resume, model, optimizer, scheduler) if args.resume else 0

    if hvd.rank() == 0:
        print(f"{args.optimizer} on {name}: {len(train_x):,} patches, {hvd.size()} ranks", flush=True)
    start = time.time()
    for epoch in range(done + 1, args.epochs + 1):
        train(args, epoch, model, loader, optimizer, scheduler)
        unexplained, dead = test(model, test_x)
        if hvd.rank() == 0:
            print(describe(epoch, unexplained, dead, args.features, time.time() - start), flush=True)
        if args.checkpoint:
            save(args, epoch, model, optimizer, scheduler)
    if hvd.rank() == 0:
        sent = None if args.optimizer == "float32-adam" else optimizer.bytes_sent  # horovod_sign
        print(describe_bytes(sent, sum(p.numel() for p in model.parameters()), hvd.size()), flush=True)
    return model


if __name__ == "__main__":
    main()
