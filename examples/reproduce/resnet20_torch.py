"""ResNet-20 by SGD, Adam, signSGD or Signum, in PyTorch: mpirun -np 4 python resnet20_torch.py --cifar FOLDER

Lines that a plain Horovod script does not have are tagged "horovod_sign".
"""

import sys
from pathlib import Path

import horovod.torch as hvd
import torch
import torch.nn.functional as F

import horovod_sign.torch as hvs  # horovod_sign

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from devices import pin_torch
from images import Batches
from progress import Progress
from resnet20 import VOTES, Log, load, parse_arguments
from torch_checkpoints import resume, write
from traffic import describe_bytes


class Block(torch.nn.Module):
    """Two convolutions beside a shortcut, which skips pixels and adds empty channels where the size halves."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.stride, self.added = stride, outputs - inputs
        self.conv1 = torch.nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = torch.nn.BatchNorm2d(outputs)
        self.conv2 = torch.nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = torch.nn.BatchNorm2d(outputs)

    def forward(self, x):
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.added:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + shortcut)


def make_model(channels: int, width: int, blocks: int) -> torch.nn.Module:
    """6 * blocks + 2 layers; ResNet-20 has 3 blocks a stage."""
    layers = [torch.nn.Conv2d(channels, width, 3, padding=1, bias=False), torch.nn.BatchNorm2d(width), torch.nn.ReLU()]
    inputs = width
    for stage in range(3):
        for block in range(blocks):
            outputs = width << stage
            layers.append(Block(inputs, outputs, 2 if stage and not block else 1))
            inputs = outputs
    model = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(inputs, 10))
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model


def make_optimizer(args, model):
    if args.optimizer == "signsgd":
        optimizer = hvs.SignSGD(model.parameters(), args.lr, args.weight_decay)  # horovod_sign
    elif args.optimizer == "signum":
        optimizer = hvs.Signum(model.parameters(), args.lr, args.momentum, args.weight_decay)  # horovod_sign
    elif args.optimizer == "adam":
        optimizer = torch.optim.AdamW(model.parameters(), args.lr, weight_decay=args.weight_decay)
    else:
        optimizer = torch.optim.SGD(model.parameters(), args.lr, args.momentum, weight_decay=args.weight_decay)
    wrapper = hvs if args.optimizer in VOTES else hvd  # horovod_sign
    return wrapper.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())


def train(args, epoch, model, batches, optimizer, scheduler, log) -> float:
    """The mean loss on this rank's images."""
    model.train()
    device, total = next(model.parameters()).device, 0.0
    label = f"epoch {epoch}"
    for x, y in Progress(batches.epoch(epoch), label, len(batches), shown=hvd.rank() == 0):
        optimizer.zero_grad()
        loss = F.cross_entropy(
            model(torch.from_numpy(x).permute(0, 3, 1, 2).to(device)), torch.from_numpy(y).to(device)
        )
        loss.backward()
        optimizer.step()
        scheduler.step()
        total += loss.item()
        log.step(optimizer.bytes_sent if args.optimizer in VOTES else None)  # horovod_sign
    return total / len(batches)


@torch.no_grad()
def average_statistics(model):
    """Each rank has normalized its own images: from here on all have the mean of what they saw."""
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    for buffer, mean in zip(buffers, hvd.grouped_allreduce(buffers, name="statistics"), strict=True):
        buffer.copy_(mean)


@torch.no_grad()
def test(model, x, y) -> float:
    """The accuracy on the whole test set, each rank on its share."""
    model.eval()
    device = next(model.parameters()).device
    share = slice(hvd.rank(), None, hvd.size())
    x, y = torch.from_numpy(x[share]).permute(0, 3, 1, 2), torch.from_numpy(y[share])
    right = sum(
        (model(a.to(device)).argmax(1).cpu() == b).sum() for a, b in zip(x.split(250), y.split(250), strict=True)
    )
    counts = torch.stack([torch.as_tensor(right), torch.as_tensor(len(y))]).double()
    right, of = hvd.allreduce(counts, name="right", op=hvd.Sum).tolist()
    return right / of


def save(args, epoch, model, optimizer, scheduler):
    """All that is needed to go on."""
    of_optimizer = optimizer.state_dict()
    if args.optimizer in VOTES:  # horovod_sign
        of_optimizer = hvs.gather_state_dict(optimizer)  # horovod_sign: with the momenta of all ranks, on rank 0
    write(args.checkpoint, epoch, model, of_optimizer, scheduler)


def main(argv=None):
    args = parse_arguments(__doc__, argv)
    hvd.init()
    device = pin_torch(args, hvd.local_rank())
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)

    images = load(args)
    batches = Batches(images, args.batch_size, hvd.rank(), hvd.size(), args.seed)
    model = make_model(images.train_x.shape[-1], args.width, args.blocks).to(device)
    optimizer = make_optimizer(args, model)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, args.milestones, 0.1)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    done = resume(args.checkpoint, model, optimizer, scheduler, missing_ok=True) if args.checkpoint else 0

    coordinates = sum(p.numel() for p in model.parameters())
    log = Log(args, hvd.rank() == 0, done, coordinates, hvd.size(), data=images.name, framework="PyTorch")
    if hvd.rank() == 0:
        what = f"{args.optimizer}, {coordinates:,} parameters, {images.name}, {hvd.size()} ranks"
        print(what + (f", from epoch {done} on" if done else ""), flush=True)
    for epoch in range(done + 1, args.epochs + 1):
        loss = train(args, epoch, model, batches, optimizer, scheduler, log)
        average_statistics(model)
        log.epoch(epoch, loss, test(model, images.test_x, images.test_y))
        if args.checkpoint:
            save(args, epoch, model, optimizer, scheduler)
    if hvd.rank() == 0 and done < args.epochs:
        sent = optimizer.bytes_sent if args.optimizer in VOTES else None  # horovod_sign
        print(describe_bytes(sent, coordinates, hvd.size()), flush=True)
    return model


if __name__ == "__main__":
    main()
