{{/* Names. The longest is a pod's: a fullname, the ReplicaSet's hash and five characters, of 63. */}}
{{- define "basaran-ops.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 46 | trimSuffix "-" -}}
{{- end }}

{{- define "basaran-ops.fullname" -}}
{{- /* A release may have dots in its name, a Service may not. */ -}}
{{- $release := .Release.Name | replace "." "-" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 46 | trimSuffix "-" -}}
{{- else if contains "basaran" $release -}}
{{- $release | trunc 46 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" $release (include "basaran-ops.name" .) | trunc 46 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "basaran-ops.management" -}}
{{ include "basaran-ops.fullname" . }}-management
{{- end }}

{{/* The alerts know an autoscaler as ours by its name. */}}
{{- define "basaran-ops.autoscaler" -}}
{{- $name := include "basaran-ops.fullname" . -}}
{{- ternary $name (printf "%s-basaran" $name) (contains "basaran" $name) -}}
{{- end }}

{{- define "basaran-ops.serviceAccount" -}}
{{- with .Values.serviceAccount -}}
{{- .name | default (ternary (include "basaran-ops.fullname" $) "default" .create) -}}
{{- end -}}
{{- end }}

{{- define "basaran-ops.claim" -}}
{{- .Values.cache.existingClaim | default (printf "%s-models" (include "basaran-ops.fullname" .)) -}}
{{- end }}

{{/* The image for NVIDIA's GPUs has another tag; one for AMD's is the user's own. */}}
{{- define "basaran-ops.image" -}}
{{- $nvidia := and (gt (int .Values.gpu.count) 0) (hasPrefix "nvidia.com/" .Values.gpu.resource) -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default (print $.Chart.AppVersion (ternary "-cu130" "" $nvidia)) }}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "basaran-ops.pullPolicy" -}}
{{- with .Values.image -}}
{{- .pullPolicy | default (ternary "Always" "IfNotPresent" (empty .digest)) -}}
{{- end -}}
{{- end }}

{{/* An answer to what checkov finds. All others are beside what they are about. */}}
{{- define "basaran-ops.checkov" -}}
{{- if not .Values.image.digest -}}
checkov.io/skip1: CKV_K8S_43=The digest is that of the image you pushed, so no chart can know it; set image.digest
{{- end -}}
{{- end }}

{{/* Labels. Those of a pod say nothing of the chart's version, or each new chart would restart the server. */}}
{{- define "basaran-ops.selectorLabels" -}}
app.kubernetes.io/name: {{ include "basaran-ops.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: server
{{- end }}

{{- define "basaran-ops.labels" -}}
{{- include "basaran-ops.labelsOf" (list . "server") -}}
{{- end }}

{{/* Labels of an object of a component: (list . "server"). */}}
{{- define "basaran-ops.labelsOf" -}}
{{- $root := index . 0 -}}
{{- $ours := dict
  "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_")
  "app.kubernetes.io/name" (include "basaran-ops.name" $root)
  "app.kubernetes.io/instance" $root.Release.Name
  "app.kubernetes.io/component" (index . 1)
  "app.kubernetes.io/version" $root.Chart.AppVersion
  "app.kubernetes.io/managed-by" $root.Release.Service
-}}
{{- merge $ours $root.Values.commonLabels | toYaml -}}
{{- end }}

{{- define "basaran-ops.podLabels" -}}
{{- $ours := include "basaran-ops.selectorLabels" . | fromYaml -}}
{{- if .Values.endpointPicker.enabled -}}
{{- $_ := set $ours "inference.networking.k8s.io/engine-type" "vllm" -}}
{{- end -}}
{{- merge $ours .Values.podLabels .Values.commonLabels | toYaml -}}
{{- end }}

{{/* Secrets. */}}
{{- define "basaran-ops.apiKeysSecret" -}}
{{- with .Values.apiKeys -}}
{{- if .existingSecret -}}
{{ .existingSecret }}
{{- else if .keys -}}
{{ include "basaran-ops.fullname" $ }}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "basaran-ops.apiKeysKey" -}}
{{- ternary "api-keys" .Values.apiKeys.existingSecretKey (empty .Values.apiKeys.existingSecret) -}}
{{- end }}

{{- define "basaran-ops.tokenSecret" -}}
{{- with .Values.huggingFace -}}
{{- if .existingSecret -}}
{{ .existingSecret }}
{{- else if .token -}}
{{ include "basaran-ops.fullname" $ }}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "basaran-ops.tokenKey" -}}
{{- ternary "hf-token" .Values.huggingFace.existingSecretKey (empty .Values.huggingFace.existingSecret) -}}
{{- end }}

{{/* What the server is told, computed from the values in one place. */}}
{{- define "basaran-ops.replicas" -}}
{{- $gpu := .Values.gpu -}}
{{- .Values.engine.replicas | default (max 1 (div $gpu.count $gpu.perReplica)) -}}
{{- end }}

{{- define "basaran-ops.slots" -}}
{{- mul .Values.engine.slots (include "basaran-ops.replicas" . | int) -}}
{{- end }}

{{/* The least that the server allows: a thread for each request that it admits, and 16 for the others. */}}
{{- define "basaran-ops.leastThreads" -}}
{{- add (include "basaran-ops.slots" . | int) .Values.server.queueLimit 16 -}}
{{- end }}

{{- define "basaran-ops.threads" -}}
{{- .Values.server.threads | default (include "basaran-ops.leastThreads" .) -}}
{{- end }}

{{- define "basaran-ops.engineThreads" -}}
{{- if .Values.engine.threads -}}
{{- .Values.engine.threads -}}
{{- else if not .Values.gpu.count -}}
{{- $cpu := (.Values.resources.requests).cpu | default (.Values.resources.limits).cpu -}}
{{- if $cpu -}}
{{- max 1 (div (include "basaran-ops.milli" $cpu | int) (mul 1000 (include "basaran-ops.replicas" . | int))) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "basaran-ops.graceSeconds" -}}
{{- with .Values.lifecycle -}}
{{- $sum := add .preStopSeconds .drainSeconds .exitSeconds -}}
{{- include "basaran-ops.text" (.terminationGracePeriodSeconds | default $sum) -}}
{{- end -}}
{{- end }}

{{- define "basaran-ops.startupSeconds" -}}
{{- with .Values.lifecycle.startup -}}
{{- mul .periodSeconds .failureThreshold -}}
{{- end -}}
{{- end }}

{{/* Until a new pod is ready, or has failed. */}}
{{- define "basaran-ops.progressSeconds" -}}
{{- $download := ternary .Values.model.download.timeoutSeconds 0 .Values.model.download.enabled -}}
{{- add (include "basaran-ops.startupSeconds" .) 60 $download -}}
{{- end }}

{{- define "basaran-ops.adapters" -}}
{{- $entries := list -}}
{{- range $name, $source := .Values.model.adapters -}}
{{- $entries = append $entries (printf "%s=%s" $name $source) -}}
{{- end -}}
{{- join "," $entries -}}
{{- end }}

{{/* A spare pod in a rollout would lack a GPU, or the volume. */}}
{{- define "basaran-ops.noSpare" -}}
{{- $shared := has "ReadWriteMany" .Values.cache.persistence.accessModes -}}
{{- $unshared := and .Values.cache.existingClaim (not $shared) -}}
{{- if or .Values.gpu.count $unshared (include "basaran-ops.unsharedCache" .) -}}true{{- end -}}
{{- end }}

{{- define "basaran-ops.maxSurge" -}}
{{- $given := include "basaran-ops.text" .Values.strategy.maxSurge -}}
{{- $given | default (ternary "1" "0" (empty (include "basaran-ops.noSpare" .))) -}}
{{- end }}

{{- define "basaran-ops.maxUnavailable" -}}
{{- $given := include "basaran-ops.text" .Values.strategy.maxUnavailable -}}
{{- $given | default (ternary "0" "1" (empty (include "basaran-ops.noSpare" .))) -}}
{{- end }}

{{/* One volume cannot be with two pods on different nodes. */}}
{{- define "basaran-ops.unsharedCache" -}}
{{- with .Values.cache.persistence -}}
{{- if and .enabled (not (has "ReadWriteMany" .accessModes)) -}}true{{- end -}}
{{- end -}}
{{- end }}

{{/* The server's variables but for secrets, as a map of strings. An empty one is unset. */}}
{{- define "basaran-ops.environment" -}}
{{- $model := .Values.model -}}
{{- $path := .Values.cache.mountPath -}}
{{- $threads := include "basaran-ops.threads" . | int -}}
{{- $all := dict
  "MODEL" $model.name
  "MODEL_REVISION" $model.revision
  "MODEL_CACHE_DIR" $path
  "MODEL_LOCAL_FILES_ONLY" ($model.localFilesOnly | ternary "true" "")
  "MODEL_TRUST_REMOTE_CODE" ($model.trustRemoteCode | ternary "true" "")
  "MODEL_ADAPTERS" (include "basaran-ops.adapters" .)
  "MODEL_CHAT_TEMPLATE" (ternary "" "/etc/basaran-ops/chat-template/chat_template.jinja" (empty $model.chatTemplate))
  "SERVER_MODEL_NAME" $model.servedName
  "SERVER_API_KEYS_FILE" (ternary "" "/etc/basaran-ops/api-keys/api-keys" (empty (include "basaran-ops.apiKeysSecret" .)))
  "ENGINE_DEVICE" (ternary "cpu" "cuda" (empty .Values.gpu.count))
  "GPUS_PER_REPLICA" .Values.gpu.perReplica
  "ENGINE_REPLICAS" (include "basaran-ops.replicas" .)
  "ENGINE_SLOTS" .Values.engine.slots
  "ENGINE_TOKEN_BUDGET" (.Values.engine.tokenBudget | default (max 512 .Values.engine.slots))
  "ENGINE_CONTEXT_LENGTH" .Values.engine.contextLength
  "ENGINE_THREADS" (include "basaran-ops.engineThreads" .)
  "SERVER_QUEUE_LIMIT" .Values.server.queueLimit
  "SERVER_THREADS" $threads
  "SERVER_CONNECTION_LIMIT" (.Values.server.connectionLimit | default (max 1000 (mul 2 $threads)))
  "SERVER_DRAIN_TIMEOUT" .Values.lifecycle.drainSeconds
  "PORT" .Values.ports.http
  "MANAGEMENT_PORT" .Values.ports.management
  "MANAGEMENT_VLLM_ALIASES" (.Values.endpointPicker.enabled | ternary "true" "")
  "LOG_FORMAT" "json"
-}}
{{- /* What libraries keep goes to the cache, what they forget to /tmp: the root is read-only. */ -}}
{{- $_ := set $all "HOME" "/tmp" -}}
{{- $_ := set $all "HF_HOME" (printf "%s/huggingface" $path) -}}
{{- $_ := set $all "TRITON_CACHE_DIR" (printf "%s/triton" $path) -}}
{{- range $name, $value := .Values.settings -}}
{{- $_ := set $all $name $value -}}
{{- end -}}
{{- $texts := dict -}}
{{- range $name, $value := $all -}}
{{- $text := include "basaran-ops.text" $value -}}
{{- if $text -}}
{{- $_ := set $texts $name $text -}}
{{- end -}}
{{- end -}}
{{- toYaml $texts -}}
{{- end }}

{{- define "basaran-ops.tokenEnv" -}}
{{- with include "basaran-ops.tokenSecret" . -}}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ . | quote }}
      key: {{ include "basaran-ops.tokenKey" $ | quote }}
{{- end -}}
{{- end }}

{{- define "basaran-ops.mounts" -}}
- name: models
  mountPath: {{ .Values.cache.mountPath | quote }}
- name: tmp
  mountPath: /tmp
- name: shm
  mountPath: /dev/shm
{{- end }}

{{/* Values as text: whole numbers arrive as floats, and large ones would be written with an exponent. */}}
{{- define "basaran-ops.text" -}}
{{- if kindIs "invalid" . -}}
{{- else if and (kindIs "float64" .) (eq . (floor .)) -}}
{{- int64 . -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end }}

{{/* Quantities: thousandths of a CPU, and bytes. */}}
{{- define "basaran-ops.milli" -}}
{{- $text := include "basaran-ops.text" . -}}
{{- if hasSuffix "m" $text -}}
{{- trimSuffix "m" $text | float64 | int64 -}}
{{- else -}}
{{- mulf 1000 (float64 $text) | int64 -}}
{{- end -}}
{{- end }}

{{- define "basaran-ops.bytes" -}}
{{- $text := include "basaran-ops.text" . -}}
{{- $unit := regexFind "[A-Za-z]*$" $text -}}
{{- $units := dict "" 1 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- mulf (trimSuffix $unit $text | float64) (get $units $unit | float64) | int64 -}}
{{- end }}

{{/* A Gateway's duration, such as 1h30m. */}}
{{- define "basaran-ops.milliseconds" -}}
{{- $units := dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 -}}
{{- $sum := 0 -}}
{{- range regexFindAll "[0-9]+(ms|s|m|h)" . -1 -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- $sum = add $sum (mul (trimSuffix $unit . | float64) (get $units $unit)) -}}
{{- end -}}
{{- $sum -}}
{{- end }}
