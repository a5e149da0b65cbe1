{{/* Everything that cannot work, said at once. What concerns one value alone is in values.schema.json. */}}
{{- define "basaran-ops.validate" -}}
{{- $faults := list -}}
{{- range list
  "Names" "Lifecycle" "Server" "Engine" "Resources" "Model" "Secrets" "Cache" "Rollout" "Exposure" "Autoscaling"
  "Environment" "Extras"
-}}
{{- range splitList "\n" (include (printf "basaran-ops.faults%s" .) $) -}}
{{- with trim . -}}
{{- $faults = append $faults . -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $faults -}}
{{- fail (printf "\n\nthese values cannot work:\n%s\n" (join "\n" $faults)) -}}
{{- end -}}
{{- end }}

{{- define "basaran-ops.faultsNames" -}}
{{- $name := include "basaran-ops.fullname" . }}
{{- if regexMatch "^[0-9]" $name }}
- the name {{ $name }} begins with a digit, as no Service's may: set fullnameOverride
{{- end }}
{{- end }}

{{- define "basaran-ops.faultsLifecycle" -}}
{{- with .Values.lifecycle }}
{{- $least := add .preStopSeconds .drainSeconds .exitSeconds }}
{{- if and .terminationGracePeriodSeconds (lt (int .terminationGracePeriodSeconds) (int $least)) }}
- lifecycle.terminationGracePeriodSeconds={{ .terminationGracePeriodSeconds }} is less than preStopSeconds + drainSeconds + exitSeconds = {{ $least }}, so streams would be killed
{{- end }}
{{- $unready := mul .readiness.periodSeconds .readiness.failureThreshold }}
{{- if lt (int .preStopSeconds) (int $unready) }}
- lifecycle.preStopSeconds={{ .preStopSeconds }} is less than the {{ $unready }} seconds (readiness.periodSeconds x failureThreshold) in which readiness fails, so requests would still be sent here
{{- end }}
{{- range $probe := list "startup" "readiness" "liveness" }}
{{- with get $.Values.lifecycle $probe }}
{{- if gt (int .timeoutSeconds) (int .periodSeconds) }}
- lifecycle.{{ $probe }}.timeoutSeconds={{ .timeoutSeconds }} is more than its periodSeconds={{ .periodSeconds }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "basaran-ops.faultsServer" -}}
{{- with .Values.server }}
{{- $least := include "basaran-ops.leastThreads" $ | int }}
{{- if and .threads (lt (int .threads) $least) }}
- server.threads={{ .threads }} is less than all slots + server.queueLimit + 16 = {{ $least }}, so waiting requests would block all others
{{- end }}
{{- $threads := include "basaran-ops.threads" $ | int }}
{{- if and .connectionLimit (le (int .connectionLimit) $threads) }}
- server.connectionLimit={{ .connectionLimit }} must be above the {{ $threads }} threads
{{- end }}
{{- end }}
{{- if eq (int .Values.ports.http) (int .Values.ports.management) }}
- ports.http and ports.management are both {{ .Values.ports.http }}
{{- end }}
{{- end }}

{{- define "basaran-ops.faultsEngine" -}}
{{- with .Values.engine }}
{{- if and .tokenBudget (lt (int .tokenBudget) (int .slots)) }}
- engine.tokenBudget={{ .tokenBudget }} is less than engine.slots={{ .slots }}
{{- end }}
{{- end }}
{{- with .Values.gpu }}
{{- $replicas := include "basaran-ops.replicas" $ | int }}
{{- if and (not .count) (gt (int .perReplica) 1) }}
- gpu.perReplica={{ .perReplica }}, but gpu.count is 0
{{- else if and .count (ne (int .count) (mul $replicas .perReplica | int)) }}
- gpu.count={{ .count }} is not engine.replicas x gpu.perReplica = {{ $replicas }} x {{ .perReplica }}: GPUs would be missing or idle
{{- end }}
{{- range $part := list "requests" "limits" }}
{{- if hasKey (get $.Values.resources $part | default dict) $.Values.gpu.resource }}
- resources.{{ $part }} names {{ $.Values.gpu.resource }}: gpu.count does
{{- end }}
{{- end }}
{{- end }}
{{- with (.Values.resources.limits).memory }}
{{- if ge (include "basaran-ops.bytes" $.Values.shm.size | int64) (include "basaran-ops.bytes" . | int64) }}
- shm.size={{ $.Values.shm.size }} counts as memory and leaves nothing of resources.limits.memory={{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "basaran-ops.faultsResources" -}}
{{- range $name, $unit := dict "cpu" "milli" "memory" "bytes" "ephemeral-storage" "bytes" }}
{{- $request := get ($.Values.resources.requests | default dict) $name | include "basaran-ops.text" }}
{{- $limit := get ($.Values.resources.limits | default dict) $name | include "basaran-ops.text" }}
{{- if and $request $limit }}
{{- $helper := print "basaran-ops." $unit }}
{{- if gt (include $helper $request | int64) (include $helper $limit | int64) }}
- resources.requests.{{ $name }}={{ $request }} is more than resources.limits.{{ $name }}={{ $limit }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "basaran-ops.faultsModel" -}}
{{- $served := .Values.model.servedName | default .Values.model.name | default "SmolLM2-135M-Instruct" }}
{{- with .Values.model }}
{{- if hasKey .adapters $served }}
- model.adapters: {{ $served }} is the model's own name
{{- end }}
{{- $settings := $.Values.settings }}
{{- if and $settings.MODEL_LOAD_IN_8BIT $settings.MODEL_LOAD_IN_4BIT }}
- settings: MODEL_LOAD_IN_8BIT and MODEL_LOAD_IN_4BIT exclude each other
{{- end }}
{{- if and $settings.MODEL_HALF_PRECISION (not (has ($settings.MODEL_DTYPE | default "auto") (list "auto" "float16"))) }}
- settings: MODEL_HALF_PRECISION is float16, but MODEL_DTYPE is {{ $settings.MODEL_DTYPE }}
{{- end }}
{{- if and .localFilesOnly .download.enabled }}
- model.localFilesOnly and model.download.enabled exclude each other
{{- end }}
{{- $claim := or $.Values.cache.existingClaim $.Values.cache.persistence.enabled }}
{{- if and .localFilesOnly (not (hasPrefix "/" .name)) (not $claim) }}
- model.localFilesOnly: {{ .name | default "the default model" }} is in no volume; name a path, or a claim that has it
{{- end }}
{{- end }}
{{- end }}

{{- define "basaran-ops.faultsSecrets" -}}
{{- if and .Values.apiKeys.existingSecret .Values.apiKeys.keys }}
- apiKeys.existingSecret and apiKeys.keys exclude each other
{{- end }}
{{- if and .Values.huggingFace.existingSecret .Values.huggingFace.token }}
- huggingFace.existingSecret and huggingFace.token exclude each other
{{- end }}
{{- end }}

{{- define "basaran-ops.faultsCache" -}}
{{- with .Values.cache }}
{{- if and .existingClaim .persistence.enabled }}
- cache.existingClaim and cache.persistence.enabled exclude each other
{{- end }}
{{- end }}
{{- $most := ternary .Values.autoscaling.maxReplicas .Values.replicaCount .Values.autoscaling.enabled | int }}
{{- if and (include "basaran-ops.unsharedCache" .) (gt $most 1) }}
- {{ $most }} pods cannot share a claim that is not ReadWriteMany: cache.persistence.accessModes={{ .Values.cache.persistence.accessModes | join "," }}
{{- end }}
{{- $path := clean .Values.cache.mountPath }}
{{- range $taken := append (include "basaran-ops.mountPaths" . | fromYamlArray) "/opt/basaran_ops" }}
{{- if hasPrefix (print (trimSuffix "/" $path) "/") (print $taken "/") }}
- cache.mountPath={{ $path }} would hide {{ $taken }}
{{- end }}
{{- end }}
{{- end }}

{{- define "basaran-ops.faultsRollout" -}}
{{- with .Values.strategy }}
{{- if and (eq .type "Recreate") (not (and (kindIs "invalid" .maxSurge) (kindIs "invalid" .maxUnavailable))) }}
- strategy.maxSurge and strategy.maxUnavailable mean nothing to Recreate
{{- end }}
{{- $none := list "0" "0%" }}
{{- if and (has (include "basaran-ops.maxSurge" $) $none) (has (include "basaran-ops.maxUnavailable" $) $none) }}
- strategy.maxSurge and strategy.maxUnavailable are both 0, so no rollout could begin
{{- end }}
{{- end }}
{{- end }}

{{- define "basaran-ops.faultsExposure" -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) }}
- ingress.enabled, but ingress.hosts is empty
{{- end }}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) }}
- httpRoute.enabled, but httpRoute.parentRefs is empty
{{- end }}
{{- with .Values.httpRoute.timeouts }}
{{- $request := include "basaran-ops.milliseconds" (.request | default "0s") | int64 }}
{{- if and $request (gt (include "basaran-ops.milliseconds" (.backendRequest | default "0s") | int64) $request) }}
- httpRoute.timeouts.backendRequest={{ .backendRequest }} is more than request={{ .request }}
{{- end }}
{{- end }}
{{- if and .Values.service.loadBalancerSourceRanges (ne .Values.service.type "LoadBalancer") }}
- service.loadBalancerSourceRanges mean nothing to the type {{ .Values.service.type }}
{{- end }}
{{- if and .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled }}
- metrics.serviceMonitor and metrics.podMonitor would both scrape each pod: choose one
{{- end }}
{{- end }}

{{- define "basaran-ops.faultsAutoscaling" -}}
{{- with .Values.autoscaling }}
{{- if .enabled }}
{{- if gt (int .minReplicas) (int .maxReplicas) }}
- autoscaling.minReplicas={{ .minReplicas }} is more than maxReplicas={{ .maxReplicas }}
{{- end }}
{{- if eq .type "keda" }}
{{- if not .keda.serverAddress }}
- autoscaling.keda.serverAddress is empty
{{- end }}
{{- $fallback := .keda.fallbackReplicas | default .maxReplicas | int }}
{{- if or (lt $fallback (int .minReplicas)) (gt $fallback (int .maxReplicas)) }}
- autoscaling.keda.fallbackReplicas={{ $fallback }} is not between minReplicas and maxReplicas
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "basaran-ops.faultsEnvironment" -}}
{{- $set := include "basaran-ops.environment" . | fromYaml }}
{{- range .Values.extraEnv }}
{{- if or (hasKey $set .name) (has .name (splitList "\n" (include "basaran-ops.managed" $))) }}
- extraEnv sets {{ .name }}, which other values decide
{{- end }}
{{- end }}
{{- end }}

{{- define "basaran-ops.faultsExtras" -}}
{{- $containers := list "server" "download" }}
{{- $volumes := list "models" "tmp" "shm" "api-keys" "chat-template" }}
{{- range $value, $ours := dict "extraContainers" $containers "initContainers" $containers "extraVolumes" $volumes }}
{{- range index $.Values $value }}
{{- if has .name $ours }}
- {{ $value }}: {{ .name }} is the chart's own name
{{- end }}
{{- end }}
{{- end }}
{{- $paths := append (include "basaran-ops.mountPaths" . | fromYamlArray) (clean .Values.cache.mountPath) }}
{{- range .Values.extraVolumeMounts }}
{{- if has (clean .mountPath) $paths }}
- extraVolumeMounts: at {{ .mountPath }} the chart mounts its own
{{- end }}
{{- end }}
{{- end }}

{{/* Where all but the models is mounted. */}}
{{- define "basaran-ops.mountPaths" -}}
[/tmp, /dev/shm, /etc/basaran-ops/api-keys, /etc/basaran-ops/chat-template]
{{- end }}

{{/* Variables that values of their own decide, even where they are unset. */}}
{{- define "basaran-ops.managed" -}}
MODEL
MODEL_REVISION
MODEL_CACHE_DIR
MODEL_LOCAL_FILES_ONLY
MODEL_TRUST_REMOTE_CODE
MODEL_ADAPTERS
MODEL_CHAT_TEMPLATE
SERVER_MODEL_NAME
SERVER_API_KEYS
SERVER_API_KEYS_FILE
ENGINE_DEVICE
ENGINE_REPLICAS
ENGINE_SLOTS
ENGINE_TOKEN_BUDGET
ENGINE_CONTEXT_LENGTH
ENGINE_THREADS
GPUS_PER_REPLICA
SERVER_QUEUE_LIMIT
SERVER_THREADS
SERVER_CONNECTION_LIMIT
SERVER_DRAIN_TIMEOUT
PORT
MANAGEMENT_PORT
MANAGEMENT_VLLM_ALIASES
HF_TOKEN
{{- end }}
