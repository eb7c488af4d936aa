"""STAND-IN until the branch `engine` is merged."""
from seresnet_timm.models.info import ModelInfo


def model_info_of(args, model, data_config, dataset) -> ModelInfo:
    reader = getattr(dataset, 'reader', None)
    names = getattr(reader, 'class_to_idx', None)
    return ModelInfo(
        name=args.model, kwargs=dict(args.model_kwargs), num_classes=model.num_classes,
        class_names=None if names is None else sorted(names, key=names.get),
        input_size=list(data_config['input_size']), mean=list(data_config['mean']), std=list(data_config['std']),
        interpolation=data_config['interpolation'], crop_pct=data_config['crop_pct'],
        crop_mode=data_config['crop_mode'])
