"""Networks: pixels in [0, 1] in, logits out."""

from robust_ood.deprecation import moved
from robust_ood.models.autoencoder import AutoEncoder
from robust_ood.models.checkpoints import load_weights, network_state, read_checkpoint
from robust_ood.models.convnet import ConvNet
from robust_ood.models.dcgan import DCGANDiscriminator, DCGANGenerator
from robust_ood.models.densenet import DenseNet
from robust_ood.models.description import describe, rebuild
from robust_ood.models.discriminated import Discriminated
from robust_ood.models.efficientnet import EfficientNetLite0
from robust_ood.models.export import export
from robust_ood.models.gated import Gated
from robust_ood.models.glow import Glow
from robust_ood.models.heads import find_head
from robust_ood.models.hugging_face import HuggingFace
from robust_ood.models.image_text import CLIP, ImageText
from robust_ood.models.key_maps import KEY_MAPS
from robust_ood.models.libraries import Timm, Torchvision
from robust_ood.models.loading import load_network
from robust_ood.models.mixtures import MixtureRatio
from robust_ood.models.neural_ode import NeuralODENet
from robust_ood.models.normalize import Normalize
from robust_ood.models.outlier_class import OutlierClass
from robust_ood.models.outputs import Outputs, count_classes, find_layers, outputs
from robust_ood.models.preact_resnet import PreActResNet
from robust_ood.models.resnet import ResNet18, ResNet34, ThinResNet
from robust_ood.models.robustbench import RobustBench
from robust_ood.models.spatial_transformer import SpatialTransformerNet
from robust_ood.models.vgg import VGG
from robust_ood.models.wide_resnet import WideResNet
from robust_ood.models.words import WordFeatures, read_words, text_features
from robust_ood.models.wrap import Wrapped, wrap
from robust_ood.models.zoo import pretrained, read_card, zoo_names

__all__ = [
    "CLIP",
    "KEY_MAPS",
    "VGG",
    "AutoEncoder",
    "ConvNet",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "DenseNet",
    "Discriminated",
    "EfficientNetLite0",
    "Gated",
    "Glow",
    "HuggingFace",
    "ImageText",
    "MixtureRatio",
    "NeuralODENet",
    "Normalize",
    "OutlierClass",
    "Outputs",
    "PreActResNet",
    "ResNet18",
    "ResNet34",
    "RobustBench",
    "SpatialTransformerNet",
    "ThinResNet",
    "Timm",
    "Torchvision",
    "WideResNet",
    "WordFeatures",
    "Wrapped",
    "count_classes",
    "describe",
    "export",
    "find_head",
    "find_layers",
    "load_network",
    "load_weights",
    "network_state",
    "outputs",
    "pretrained",
    "read_card",
    "read_checkpoint",
    "read_words",
    "rebuild",
    "text_features",
    "wrap",
    "zoo_names",
]

__getattr__ = moved(__name__, {"find_parts": "robust_ood.models.find_layers"})
