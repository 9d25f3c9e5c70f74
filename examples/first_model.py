"""A first deep learning model in plain PyTorch: the system of the article that Gingham began with, in one file.

    pip install torch torchvision matplotlib tqdm
    python examples/first_model.py                  # three epochs, some minutes on a CPU
    python examples/first_model.py --share 0.1 --epochs 10      # a tenth of the images, which needs more epochs

It trains a convolutional network to tell the ten kinds of clothes of Fashion-MNIST apart, and evaluates it on images
that it was not trained on. Nothing here needs Gingham; `gingham train --recipe article` trains the same network.

Source: "My first deep learning model using PyTorch".
"""

import argparse

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms
from tqdm.auto import tqdm

parser = argparse.ArgumentParser(description="Train the article's network on Fashion-MNIST.")
parser.add_argument("--data", default="data", help="folder of the dataset, which is downloaded if it is not there")
parser.add_argument("--share", type=float, default=1.0, help="share of the images to use, from 0 to 1")
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()
if not 0.001 <= arguments.share <= 1:
    parser.error(f"--share got {arguments.share}; allowed: from 0.001 to 1")
torch.manual_seed(arguments.seed)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# 1. The data. Pixels from 0 to 255 become numbers from -1 to 1.
to_numbers = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean=(0.5,), std=(0.5,))])
train_data = datasets.FashionMNIST(arguments.data, train=True, download=True, transform=to_numbers)
test_data = datasets.FashionMNIST(arguments.data, train=False, download=True, transform=to_numbers)
classes = train_data.classes
train_images = Subset(train_data, range(round(arguments.share * len(train_data))))
test_images = Subset(test_data, range(round(arguments.share * len(test_data))))
train_loader = DataLoader(train_images, batch_size=64, shuffle=True)
test_loader = DataLoader(test_images, batch_size=1000)
print(f"{len(train_images):,} training images, {len(test_images):,} test images, {len(classes)} classes, on {device}")

# 2. Look at one batch.
images, labels = next(iter(train_loader))
print(
    f"a batch: images {tuple(images.shape)} from {images.min():.0f} to {images.max():.0f}, labels {tuple(labels.shape)}"
)
figure, grid = plt.subplots(2, 3, figsize=(6, 4.5), layout="constrained")
for axes, image, label in zip(grid.flat, images, labels, strict=False):
    axes.imshow(image[0], cmap="gray")
    axes.set_title(classes[label])
    axes.axis("off")
figure.savefig("first-batch.png")

# 3. The network. A convolution without padding makes the image smaller, and each position of its output depends on
# more of the image: its receptive field. Layers are added until the receptive field covers all 28 pixels.
network = nn.Sequential(  # (N, 1, 28, 28), receptive field of 1 pixel
    nn.Conv2d(1, 16, 3, bias=False), nn.ReLU(),  # (N, 16, 26, 26), 3
    nn.Conv2d(16, 32, 3, bias=False), nn.ReLU(),  # (N, 32, 24, 24), 5
    nn.Conv2d(32, 64, 3, bias=False), nn.ReLU(),  # (N, 64, 22, 22), 7
    nn.MaxPool2d(2),  # (N, 64, 11, 11), 8; one step is now two pixels of the image
    nn.Conv2d(64, 32, 1, bias=False), nn.ReLU(),  # (N, 32, 11, 11), 8: mixes channels only
    nn.Conv2d(32, 32, 3, bias=False), nn.ReLU(),  # (N, 32, 9, 9), 12
    nn.Conv2d(32, 32, 3, bias=False), nn.ReLU(),  # (N, 32, 7, 7), 16
    nn.Conv2d(32, 10, 1, bias=False), nn.ReLU(),  # (N, 10, 7, 7), 16
    nn.Conv2d(10, 10, 7, bias=False),  # (N, 10, 1, 1), 28: one number per class, from the whole image
    nn.Flatten(),  # (N, 10)
    nn.LogSoftmax(dim=1),  # (N, 10): the logarithms of the probabilities
).to(device)  # fmt: skip

# 4. The summary: what each layer returns for one image, and how many numbers it learns.
print(f"\n{'layer':<12}{'output':<18}parameters")
output = torch.zeros(1, 1, 28, 28, device=device)
for layer in network:
    output = layer(output)
    parameters = sum(parameter.numel() for parameter in layer.parameters())
    print(f"{type(layer).__name__:<12}{tuple(output.shape)!s:<18}{parameters:>10,}")
print(f"{'total':<30}{sum(parameter.numel() for parameter in network.parameters()):>10,}\n")


# 5. Training: predict, measure the error, and change every parameter a little in the direction that reduces it.
def train(epoch):
    network.train()
    losses = []
    bar = tqdm(train_loader, desc=f"epoch {epoch}")
    for images, labels in bar:
        optimizer.zero_grad()
        loss = F.nll_loss(network(images.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return losses


# 6. Testing: count the correct predictions. Nothing is learned, so no gradients are needed.
@torch.no_grad()
def test():
    network.eval()
    correct = 0
    for images, labels in test_loader:
        predicted = network(images.to(device)).argmax(dim=1)
        correct += (predicted == labels.to(device)).sum().item()
    return correct / len(test_images)


optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
losses, accuracies = [], []
for epoch in range(1, arguments.epochs + 1):
    losses += train(epoch)
    accuracies.append(test())
    print(f"epoch {epoch}: test accuracy {accuracies[-1]:.2%}")

# 7. The result: the loss of each batch, and the accuracy after each epoch.
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
left.plot(losses, linewidth=0.7)
left.set(xlabel="batch", ylabel="training loss")
right.plot(range(1, arguments.epochs + 1), [100 * accuracy for accuracy in accuracies], marker="o")
right.set(xlabel="epoch", ylabel="test accuracy (%)", xticks=range(1, arguments.epochs + 1))
figure.savefig("first-model.png")
torch.save(network.state_dict(), "first-model.pt")
print("written: first-batch.png, first-model.png and first-model.pt, the weights")
