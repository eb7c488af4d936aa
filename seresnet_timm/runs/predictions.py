"""What a model says of the images of a validation split: confusion matrix, top-1 of each class, the worst images."""
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional

import numpy as np
from PIL import Image

UNREADABLE = -1  # instead of a class


@dataclass(frozen=True)
class Predictions:
    """Predictions for images whose class is known; an image that cannot be read counts as wrong.

    Attributes:
        model: Where the weights came from.
        data: Folder of the images.
        class_names: Names of the model's classes, by index.
        files: The images.
        targets: Class of each image.
        predicted: Most likely class of each; `UNREADABLE` if it cannot be read.
        probability: Probability of the most likely class.
        of_target: Probability of the image's own class.
        in_top5: Whether its own class is among the five most likely.
        open_image: Reads an image as RGB; None if it cannot be read.
    """
    model: str
    data: str
    class_names: List[str]
    files: List[str]
    targets: List[int]
    predicted: List[int]
    probability: List[float]
    of_target: List[float]
    in_top5: List[bool]
    open_image: Callable[[str], Optional[Image.Image]] = lambda file: None

    @property
    def correct(self) -> int:
        return sum(t == p for t, p in zip(self.targets, self.predicted))

    @property
    def top1(self) -> float:
        return 100 * self.correct / len(self.files)

    @property
    def top5(self) -> float:
        return 100 * sum(self.in_top5) / len(self.files)

    @property
    def unreadable(self) -> List[str]:
        return [file for file, p in zip(self.files, self.predicted) if p == UNREADABLE]

    def matrix(self) -> np.ndarray:
        """Number of images by class (row) and most likely class (column), without those that cannot be read."""
        size = len(self.class_names)
        targets, predicted = np.array(self.targets), np.array(self.predicted)
        readable = predicted != UNREADABLE
        cells = targets[readable] * size + predicted[readable]
        return np.bincount(cells, minlength=size * size).reshape(size, size)

    def per_class(self) -> List[Dict[str, Any]]:
        """Images, top-1 (percent, None without images) and most frequent error of every class, by index."""
        matrix, total = self.matrix(), np.bincount(self.targets, minlength=len(self.class_names))
        wrong = matrix.copy()
        np.fill_diagonal(wrong, 0)
        result = []
        for i, name in enumerate(self.class_names):
            count = int(wrong[i].max())
            result.append({
                'class': name, 'index': i, 'images': int(total[i]), 'correct': int(matrix[i, i]),
                'top1': 100 * int(matrix[i, i]) / int(total[i]) if total[i] else None,
                'confused_with': self.class_names[int(wrong[i].argmax())] if count else None,
                'confused_images': count})
        return result

    def confused(self) -> List[Dict[str, Any]]:
        """Pairs of a class and what its images were taken for, the most frequent first."""
        matrix = self.matrix()
        np.fill_diagonal(matrix, 0)
        total = np.bincount(self.targets, minlength=len(self.class_names))
        pairs = sorted(zip(*np.nonzero(matrix)), key=lambda pair: (-matrix[pair], pair))
        return [{'class': self.class_names[i], 'predicted': self.class_names[j], 'images': int(matrix[i, j]),
                 'share': float(matrix[i, j] / total[i])} for i, j in pairs]

    def worst(self, limit: int) -> List[int]:
        """The wrong images whose own class is the least likely, by number; none that cannot be read."""
        wrong = [i for i, (t, p) in enumerate(zip(self.targets, self.predicted)) if p not in (t, UNREADABLE)]
        return sorted(wrong, key=lambda i: (self.of_target[i], i))[:limit]

    def to_dict(self, worst: int) -> Dict[str, Any]:
        return {
            'model': self.model, 'data': self.data, 'images': len(self.files), 'top1': self.top1, 'top5': self.top5,
            'classes': self.per_class(), 'confused': self.confused(),
            'worst': [{
                'file': self.files[i], 'class': self.class_names[self.targets[i]],
                'predicted': self.class_names[self.predicted[i]], 'probability': self.probability[i],
                'probability_of_class': self.of_target[i]} for i in self.worst(worst)],
            'unreadable': self.unreadable,
        }
