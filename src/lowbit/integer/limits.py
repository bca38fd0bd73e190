"""How large an integer network may be: limits that no real network meets, so that no file takes all memory to run.

A file may be signed correctly and still ask for padding of 20,000 on a picture of 8×8. `validate` refuses it, naming
the node.
Sizes are of one sample.
"""

from __future__ import annotations

INPUT_MAX = 1 << 26
"""Elements of an input. 256³ voxels with 4 channels are as many; a picture of 4096×4096 has 50 million."""
TENSOR_MAX = 1 << 27
"""Elements of a tensor of codes, padding around it included. 128 channels of 1024×1024 (a U-Net's last concatenation)
are as many; 64 channels of a full-HD picture (super-resolution) have 133 million."""
TOTAL_MAX = 1 << 31
"""Elements of all tensors together. EfficientNet-B7 on 600×600 pictures has about a billion."""
KERNEL_MAX = 1 << 14
"""Positions of a kernel. PeLK's 101×101 has 10,201; a pool over a map of 112×112 has 12,544."""
WINDOWS_MAX = 1 << 33
"""Elements that the windows of one node gather: channels · kernel positions · windows. RepLKNet's 31×31 on 128 channels
of 256×256 gather 8.1 billion; VGG's largest layer 29 million."""
MACS_MAX = 1 << 42
"""Multiply-accumulates of all nodes together. The vision transformer of Segment Anything (ViT-H) has 3 · 10^12."""
NODES_MAX = 10_000
"""Nodes. NASNet-A-Large, of the largest searched cells, has about 2,500; EfficientNet-B7 1,500."""
INPUTS_MAX = 1_000
"""Inputs of one node. DenseNet-264 concatenates 65."""
INDICES_MAX = 1 << 24
"""Positions along one dimension that are taken by index. Nearest upsampling to five minutes of sound has 14 million."""
