# The server with a private or gated model of the hub inside, see README.md:
#
#     docker build --file deployments/bundle/private.Dockerfile --build-arg MODEL=user/repo \
#         --secret id=hf_token,env=HF_TOKEN --tag my-model deployments/bundle

# checkov:skip=CKV_DOCKER_2: the health check is the base's
# checkov:skip=CKV_DOCKER_7: the base's tag is its version
ARG BASARAN_OPS_IMAGE=basaran-ops:0.1.0

FROM ${BASARAN_OPS_IMAGE} AS model
ARG MODEL
ARG MODEL_REVISION=
ARG HF_ENDPOINT=https://huggingface.co
COPY fetch_model.py /opt/
# The token is a file while this runs, and in no layer: the hub's client reads it from where it is told.
RUN --mount=type=secret,id=hf_token,required=true,uid=10001 \
    HF_TOKEN_PATH=/run/secrets/hf_token python /opt/fetch_model.py /tmp/model


FROM ${BASARAN_OPS_IMAGE}
ARG MODEL
COPY --from=model --chown=0:0 /tmp/model /model
# Not in /models, where volumes are mounted.
ENV MODEL=/model \
    SERVER_MODEL_NAME=${MODEL}
USER 10001:10001
