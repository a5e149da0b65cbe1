{{- define "basaran-ops.pod" -}}
metadata:
  labels:
    {{- include "basaran-ops.podLabels" . | nindent 4 }}
  annotations:
    {{- /* API keys are left out: the server reads them again by itself. */}}
    {{- $read := list .Values.model.chatTemplate .Values.huggingFace.token | toJson | sha256sum }}
    {{- merge (dict "checksum/config" $read) .Values.podAnnotations | toYaml | nindent 4 }}
spec:
  {{- /* A Service named basaran would set BASARAN_PORT=tcp://... and the like. */}}
  enableServiceLinks: false
  automountServiceAccountToken: false
  serviceAccountName: {{ include "basaran-ops.serviceAccount" . | quote }}
  terminationGracePeriodSeconds: {{ include "basaran-ops.graceSeconds" . }}
  {{- with .Values.podSecurityContext }}
  securityContext:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.runtimeClassName }}
  runtimeClassName: {{ . | quote }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . | quote }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- $ours := dict "labelSelector" (dict "matchLabels" (include "basaran-ops.selectorLabels" $ | fromYaml)) }}
    {{- $constraints := list }}
    {{- range . }}
    {{- $constraints = append $constraints (merge (deepCopy .) (ternary dict $ours (hasKey . "labelSelector"))) }}
    {{- end }}
    {{- toYaml $constraints | nindent 4 }}
  {{- end }}
  {{- if or .Values.model.download.enabled .Values.initContainers }}
  initContainers:
    {{- if .Values.model.download.enabled }}
    {{- include "basaran-ops.downloadContainer" . | nindent 4 }}
    {{- end }}
    {{- with .Values.initContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
  containers:
    {{- include "basaran-ops.serverContainer" . | nindent 4 }}
    {{- with .Values.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "basaran-ops.volumes" . | nindent 4 }}
{{- end }}

{{- define "basaran-ops.serverContainer" -}}
- name: server
  image: {{ include "basaran-ops.image" . | quote }}
  imagePullPolicy: {{ include "basaran-ops.pullPolicy" . }}
  command: [python, -m, basaran_ops]
  {{- with .Values.securityContext }}
  securityContext:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  ports:
    - name: http
      containerPort: {{ .Values.ports.http }}
    - name: management
      containerPort: {{ .Values.ports.management }}
  env:
    {{- range $name, $value := include "basaran-ops.environment" . | fromYaml }}
    {{- /* What the init container fetched is all there is to fetch. */}}
    {{- if not (and (eq $name "MODEL_LOCAL_FILES_ONLY") $.Values.model.download.enabled) }}
    - name: {{ $name }}
      value: {{ $value | quote }}
    {{- end }}
    {{- end }}
    {{- if .Values.model.download.enabled }}
    - name: MODEL_LOCAL_FILES_ONLY
      value: "true"
    {{- else }}
    {{- with include "basaran-ops.tokenEnv" . }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- end }}
    {{- with .Values.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.extraEnvFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  startupProbe:
    {{- include "basaran-ops.probe" (list . "startup" "/readyz") | nindent 4 }}
  readinessProbe:
    {{- include "basaran-ops.probe" (list . "readiness" "/readyz") | nindent 4 }}
  livenessProbe:
    {{- include "basaran-ops.probe" (list . "liveness" "/livez") | nindent 4 }}
  lifecycle:
    preStop:
      httpGet:
        path: /drain?delay={{ .Values.lifecycle.preStopSeconds }}
        port: management
  resources:
    {{- include "basaran-ops.resources" . | nindent 4 }}
  volumeMounts:
    {{- include "basaran-ops.mounts" . | nindent 4 }}
    {{- if include "basaran-ops.apiKeysSecret" . }}
    {{- /* The directory, not the file: a file of its own would stay as it is when the Secret changes. */}}
    - name: api-keys
      mountPath: /etc/basaran-ops/api-keys
      readOnly: true
    {{- end }}
    {{- if .Values.model.chatTemplate }}
    - name: chat-template
      mountPath: /etc/basaran-ops/chat-template
      readOnly: true
    {{- end }}
    {{- with .Values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{- define "basaran-ops.downloadContainer" -}}
- name: download
  image: {{ include "basaran-ops.image" . | quote }}
  imagePullPolicy: {{ include "basaran-ops.pullPolicy" . }}
  command:
    - python
    - -c
    - |
      {{- .Files.Get "files/download.py" | nindent 6 }}
  {{- with .Values.securityContext }}
  securityContext:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  env:
    {{- range $name, $value := include "basaran-ops.environment" . | fromYaml }}
    {{- if or (hasPrefix "MODEL" $name) (hasPrefix "H" $name) }}
    - name: {{ $name }}
      value: {{ $value | quote }}
    {{- end }}
    {{- end }}
    - name: DOWNLOAD_TIMEOUT
      value: {{ include "basaran-ops.text" .Values.model.download.timeoutSeconds | quote }}
    {{- with include "basaran-ops.tokenEnv" . }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with .Values.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.extraEnvFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  resources:
    {{- toYaml .Values.resources | nindent 4 }}
  volumeMounts:
    {{- include "basaran-ops.mounts" . | nindent 4 }}
    {{- with .Values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{- define "basaran-ops.probe" -}}
{{- $values := get (index . 0).Values.lifecycle (index . 1) -}}
httpGet:
  path: {{ index . 2 }}
  port: management
periodSeconds: {{ $values.periodSeconds }}
timeoutSeconds: {{ $values.timeoutSeconds }}
failureThreshold: {{ $values.failureThreshold }}
{{- end }}

{{/* GPUs are the same in requests and limits; Kubernetes allows nothing else. */}}
{{- define "basaran-ops.resources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- if .Values.gpu.count -}}
{{- range $part := list "requests" "limits" -}}
{{- $quantities := get $resources $part | default dict -}}
{{- $_ := set $resources $part (set $quantities $.Values.gpu.resource (toString $.Values.gpu.count)) -}}
{{- end -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end }}

{{- define "basaran-ops.volumes" -}}
- name: models
  {{- if or .Values.cache.existingClaim .Values.cache.persistence.enabled }}
  persistentVolumeClaim:
    claimName: {{ include "basaran-ops.claim" . | quote }}
  {{- else if .Values.cache.sizeLimit }}
  emptyDir:
    sizeLimit: {{ include "basaran-ops.text" .Values.cache.sizeLimit | quote }}
  {{- else }}
  emptyDir: {}
  {{- end }}
- name: tmp
  emptyDir:
    sizeLimit: {{ include "basaran-ops.text" .Values.tmp.size | quote }}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ include "basaran-ops.text" .Values.shm.size | quote }}
{{- with include "basaran-ops.apiKeysSecret" . }}
- name: api-keys
  secret:
    secretName: {{ . | quote }}
    defaultMode: 0440
    items:
      - key: {{ include "basaran-ops.apiKeysKey" $ | quote }}
        path: api-keys
{{- end }}
{{- if .Values.model.chatTemplate }}
- name: chat-template
  configMap:
    name: {{ include "basaran-ops.fullname" . | quote }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
