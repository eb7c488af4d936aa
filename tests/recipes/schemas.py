"""JSON schemas of the fields that recipes/k8s uses, and no others: a misspelt field is refused

The types are those that MindCluster's Ascend Operator, Volcano and Kubeflow Trainer publish; a Kubernetes server drops
unknown fields silently or refuses them.
"""
from typing import Any, Dict

TEXT = {'type': 'string', 'minLength': 1}
COUNT = {'type': 'integer', 'minimum': 0}
TEXTS = {'type': 'object', 'additionalProperties': {'type': 'string'}}
NAME = {'type': 'string', 'pattern': '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'}
QUANTITY = {'anyOf': [{'type': 'integer', 'minimum': 1}, {'type': 'string', 'pattern': r'^[0-9]+(m|[KMGT]i)?$'}]}


def fields(required: Dict[str, Any], **optional: Any) -> Dict[str, Any]:
    """An object with these fields and no others."""
    return {'type': 'object', 'additionalProperties': False, 'properties': {**required, **optional},
            'required': list(required)}


def several(item: Dict[str, Any]) -> Dict[str, Any]:
    return {'type': 'array', 'items': item, 'minItems': 1}


METADATA = fields({'name': NAME}, labels=TEXTS)
LABELS = fields({}, labels=TEXTS)
RESOURCES = fields({
    'requests': {'type': 'object', 'additionalProperties': QUANTITY},
    'limits': {'type': 'object', 'additionalProperties': QUANTITY}})
ENV = fields({'name': TEXT}, value=TEXT, valueFrom=fields({'fieldRef': fields({'fieldPath': TEXT})}))
MOUNT = fields({'name': NAME, 'mountPath': TEXT}, readOnly={'type': 'boolean'})
VOLUME = {
    **fields(
        {'name': NAME},
        persistentVolumeClaim=fields({'claimName': NAME}, readOnly={'type': 'boolean'}),
        emptyDir=fields({'medium': {'const': 'Memory'}, 'sizeLimit': QUANTITY}),
        hostPath=fields({'path': TEXT})),
    'minProperties': 2, 'maxProperties': 2}
CONTAINER = fields(
    {'name': NAME, 'image': TEXT, 'volumeMounts': several(MOUNT)},
    imagePullPolicy={'enum': ['Always', 'IfNotPresent', 'Never']}, command=several(TEXT), args=several(TEXT),
    env=several(ENV), resources=RESOURCES,
    ports=several(fields({'containerPort': {'type': 'integer', 'minimum': 1, 'maximum': 65535}}, name=NAME)))
ANTI_AFFINITY = fields({'podAntiAffinity': fields({
    'requiredDuringSchedulingIgnoredDuringExecution': several(fields({
        'topologyKey': TEXT,
        'labelSelector': fields({'matchExpressions': several(fields({
            'key': TEXT, 'operator': {'enum': ['In', 'NotIn', 'Exists', 'DoesNotExist']}, 'values': several(TEXT)}))}),
    }))})})
POD = fields(
    {'containers': several(CONTAINER), 'volumes': several(VOLUME), 'terminationGracePeriodSeconds': COUNT},
    restartPolicy={'enum': ['Always', 'OnFailure', 'Never']}, nodeSelector=TEXTS, affinity=ANTI_AFFINITY)


def template(**more: Any) -> Dict[str, Any]:
    return fields({'spec': POD, **more}, metadata=LABELS)


def resource(version: str, kind: str, spec: Dict[str, Any]) -> Dict[str, Any]:
    return fields({'apiVersion': {'const': version}, 'kind': {'const': kind}, 'metadata': METADATA, 'spec': spec})


REPLICA = fields({
    'replicas': COUNT, 'restartPolicy': {'enum': ['Always', 'OnFailure', 'Never', 'ExitCode']}, 'template': template()})
ASCEND_JOB = resource('mindxdl.gitee.com/v1', 'AscendJob', fields(
    {'replicaSpecs': fields({'Master': REPLICA}, Worker=REPLICA)},
    schedulerName={'const': 'volcano'}, successPolicy=TEXT,
    runPolicy=fields(
        {}, backoffLimit=COUNT, schedulingPolicy=fields({}, minAvailable=COUNT, queue=TEXT, priorityClass=TEXT))))

EVENTS = ['*', 'PodPending', 'PodRunning', 'PodFailed', 'PodEvicted', 'Unknown', 'TaskCompleted', 'OutOfSync',
          'CommandIssued', 'JobUpdated', 'TaskFailed']
ACTIONS = ['AbortJob', 'RestartJob', 'RestartTask', 'RestartPod', 'TerminateJob', 'CompleteJob', 'ResumeJob']
POLICIES = several(fields({'event': {'enum': EVENTS}, 'action': {'enum': ACTIONS}}))
VOLCANO_JOB = resource('batch.volcano.sh/v1alpha1', 'Job', fields(
    {'minAvailable': COUNT, 'tasks': several(fields({'name': NAME, 'replicas': COUNT, 'template': template()},
                                                    policies=POLICIES, maxRetry=COUNT))},
    schedulerName={'const': 'volcano'}, queue=TEXT, maxRetry=COUNT, policies=POLICIES,
    plugins={'type': 'object', 'additionalProperties': {'type': 'array', 'items': TEXT}}))

TRAINING_RUNTIME = resource('trainer.kubeflow.org/v1alpha1', 'TrainingRuntime', fields({
    'mlPolicy': fields({'numNodes': COUNT, 'torch': fields({})}),
    'template': fields({'spec': fields(
        {'replicatedJobs': several(fields({'name': NAME, 'template': fields({
            'metadata': LABELS, 'spec': fields({'template': template()}, backoffLimit=COUNT)})}))},
        failurePolicy=fields({'maxRestarts': COUNT}))})}))
TRAIN_JOB = resource('trainer.kubeflow.org/v1alpha1', 'TrainJob', fields({
    'runtimeRef': fields({'name': NAME, 'kind': {'enum': ['TrainingRuntime', 'ClusterTrainingRuntime']}},
                         apiGroup={'const': 'trainer.kubeflow.org'}),
    'trainer': fields(
        {'numNodes': COUNT, 'numProcPerNode': {'type': 'integer', 'minimum': 1}, 'command': several(TEXT)},
        args=several(TEXT), image=TEXT, env=several(ENV), resourcesPerNode=RESOURCES)}))

BY_KIND = {'AscendJob': ASCEND_JOB, 'Job': VOLCANO_JOB, 'TrainingRuntime': TRAINING_RUNTIME, 'TrainJob': TRAIN_JOB}
