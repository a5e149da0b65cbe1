{{/* What rules and dashboard know the job by, whatever the Service or the monitor is called. */}}
{{- define "basaran-ops.endpoint" -}}
port: management
path: /metrics
interval: {{ .interval }}
relabelings:
  - action: replace
    targetLabel: job
    replacement: basaran_ops
{{- end }}
