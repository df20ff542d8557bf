"""A CNN on Fashion-MNIST by Horovod's float32 SGD, signSGD or Signum: mpirun -np 4 python pytorch_fashion_mnist.py

After Horovod's own pytorch_mnist.py. Lines that a plain Horovod script does not have are tagged "horovod_sign".
"""

import sys
from pathlib import Path

import horovod.torch as hvd
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

import horovod_sign.torch as hvs  # horovod_sign

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from arguments import LEARNING_RATES, parse_arguments
from devices import pin_torch
from fashion_mnist import make_model, read_sets
from progress import Progress
from recording import Record
from traffic import describe_bytes, float32_bytes


def device_of(model) -> torch.device:
    return next(model.parameters()).device


def make_optimizer(args, model):
    lr = args.lr or LEARNING_RATES[args.optimizer]
    if args.optimizer == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), lr, args.momentum, weight_decay=args.weight_decay)
        return hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
    if args.optimizer == "signsgd":
        optimizer = hvs.SignSGD(model.parameters(), lr, args.weight_decay)  # horovod_sign
    else:
        optimizer = hvs.Signum(model.parameters(), lr, args.momentum, args.weight_decay)  # horovod_sign
    return hvs.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())  # horovod_sign


def train(args, epoch, model, loader, test_set, optimizer, scheduler, record):
    device = device_of(model)
    loader.sampler.set_epoch(epoch)
    progress = Progress(loader, f"epoch {epoch}", shown=hvd.rank() == 0, lines=False)
    for step, (images, labels) in enumerate(progress):
        model.train()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()
        scheduler.step()
        if record.step(bytes_sent(args, optimizer)):
            evaluate(model, test_set, record)
        if hvd.rank() == 0 and step % args.log_interval == 0:
            progress.note(f"loss {loss.item():.4f}")


@torch.no_grad()
def test(model, dataset):
    """The accuracy on the whole test set, each rank on its share."""
    model.eval()
    images, labels = (tensor[hvd.rank() :: hvd.size()].to(device_of(model)) for tensor in dataset.tensors)
    right = sum(
        (model(x).argmax(1) == y).sum() for x, y in zip(images.split(500), labels.split(500), strict=True)
    ).double()
    return hvd.allreduce(right, name="right", op=hvd.Sum).item() / len(dataset)


def evaluate(model, dataset, record):
    with record.paused():
        accuracy = test(model, dataset)
        record.evaluated(accuracy)
    return accuracy


def bytes_sent(args, optimizer):
    """Of this rank in the last step; None: those of float32."""
    return None if args.optimizer == "sgd" else optimizer.bytes_sent  # horovod_sign


def main():
    args = parse_arguments(__doc__)
    hvd.init()
    device = pin_torch(args, hvd.local_rank())
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)

    name, train_set, test_set = read_sets(args)
    sampler = DistributedSampler(train_set, hvd.size(), hvd.rank(), seed=args.seed)
    loader = DataLoader(train_set, args.batch_size, sampler=sampler, drop_last=True)

    model = make_model().to(device)
    optimizer = make_optimizer(args, model)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * len(loader))
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)

    path = args.record if hvd.rank() == 0 else None
    coordinates = sum(p.numel() for p in model.parameters())
    about = {"optimizer": args.optimizer, "data": name, "ranks": hvd.size()}
    record = Record(path, args.evaluate_every, float32_bytes(coordinates, hvd.size()), **about)
    if hvd.rank() == 0:
        print(f"{args.optimizer} on {name}: {len(train_set):,} images, {hvd.size()} ranks", flush=True)
    for epoch in range(1, args.epochs + 1):
        train(args, epoch, model, loader, test_set, optimizer, scheduler, record)
        accuracy = evaluate(model, test_set, record)
        if hvd.rank() == 0:
            print(f"epoch {epoch}  test accuracy {100 * accuracy:.2f} %  ({record.seconds:.0f} s)", flush=True)
    if hvd.rank() == 0:
        print(describe_bytes(bytes_sent(args, optimizer), coordinates, hvd.size()), flush=True)


if __name__ == "__main__":
    main()
