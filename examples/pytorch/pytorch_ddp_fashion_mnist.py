"""A CNN on Fashion-MNIST by DistributedDataParallel, float32 or by votes: torchrun --nproc-per-node 4 THIS_FILE

Without Horovod. Lines that a plain script does not have are tagged "horovod_sign". `mpirun -np 4 python` starts it too.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from horovod_sign import ddp  # horovod_sign

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from arguments import LEARNING_RATES, parse_arguments
from devices import pin_torch
from fashion_mnist import make_model, read_sets
from progress import Progress
from traffic import describe_bytes


def init():
    """The process group of all ranks: torchrun says which they are, and so does Open MPI's mpirun, in its own words."""
    for name, mpis in (("RANK", "WORLD_RANK"), ("WORLD_SIZE", "WORLD_SIZE"), ("LOCAL_RANK", "WORLD_LOCAL_RANK")):
        if f"OMPI_COMM_{mpis}" in os.environ:
            os.environ.setdefault(name, os.environ[f"OMPI_COMM_{mpis}"])
    os.environ.setdefault("MASTER_ADDR", "localhost")  # on several hosts: mpirun -x MASTER_ADDR=the first of them
    os.environ.setdefault("MASTER_PORT", "29500")
    dist.init_process_group()


def make_optimizer(args, model):
    """The optimizer, and the state of votes, None for float32."""
    lr = args.lr or LEARNING_RATES[args.optimizer]
    if args.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr, args.momentum, weight_decay=args.weight_decay), None
    rule = ddp.signsgd() if args.optimizer == "signsgd" else ddp.signum(args.momentum)  # horovod_sign
    state = ddp.VoteState(rule=rule)  # horovod_sign
    model.register_comm_hook(state, ddp.vote_hook)  # horovod_sign
    return torch.optim.SGD(model.parameters(), lr, weight_decay=args.weight_decay), state


def train(args, epoch, model, loader, optimizer, scheduler, device):
    model.train()
    loader.sampler.set_epoch(epoch)
    progress = Progress(loader, f"epoch {epoch}", shown=dist.get_rank() == 0, lines=False)
    for step, (images, labels) in enumerate(progress):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()
        scheduler.step()
        if dist.get_rank() == 0 and step % args.log_interval == 0:
            progress.note(f"loss {loss.item():.4f}")


@torch.no_grad()
def test(model, dataset, device):
    """The accuracy on the whole test set, each rank on its share."""
    model.eval()
    images, labels = (tensor[dist.get_rank() :: dist.get_world_size()].to(device) for tensor in dataset.tensors)
    batches = zip(images.split(500), labels.split(500), strict=True)
    right = sum((model.module(x).argmax(1) == y).sum() for x, y in batches).double()
    dist.all_reduce(right)
    return right.item() / len(dataset)


def main():
    args = parse_arguments(__doc__)
    init()
    rank, size = dist.get_rank(), dist.get_world_size()
    device = pin_torch(args, int(os.environ.get("LOCAL_RANK", "0")))
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)

    name, train_set, test_set = read_sets(args)
    sampler = DistributedSampler(train_set, size, rank, seed=args.seed)
    loader = DataLoader(train_set, args.batch_size, sampler=sampler, drop_last=True)
    model = DistributedDataParallel(make_model().to(device))
    optimizer, state = make_optimizer(args, model)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * len(loader))
    if rank == 0:
        print(f"{args.optimizer} on {name}: {len(train_set):,} images, {size} ranks", flush=True)
    for epoch in range(1, args.epochs + 1):
        train(args, epoch, model, loader, optimizer, scheduler, device)
        accuracy = test(model, test_set, device)
        if rank == 0:
            print(f"epoch {epoch}  test accuracy {100 * accuracy:.2f} %", flush=True)
    if rank == 0:
        coordinates = sum(p.numel() for p in model.parameters())
        print(describe_bytes(state and state.bytes_sent, coordinates, size), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
